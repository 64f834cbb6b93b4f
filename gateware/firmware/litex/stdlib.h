/* For liblitedram, which uses nothing of it. */
#pragma once
