"""Imports pynq without what it says on a machine that is no board; every module of the driver gets it from here."""

import warnings

from sentei.driver.errors import PynqMissingError

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CPU Architecture.*", category=ResourceWarning)
        warnings.filterwarnings("ignore", message=".*XRT environment.*", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*was already imported from.*", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*pkg_resources.*", category=UserWarning)
        import pynq
        import pynq.interrupt
        import pynq.metadata.runtime_metadata_parser
        from pynqmetadata.frontends import Metadata
except ImportError as error:
    raise PynqMissingError(
        f"pynq must be installed to run programs ({error}): pip install 'sentei[sim]', or on a PYNQ board use the "
        "image's own environment: source /etc/profile.d/pynq_venv.sh"
    ) from error

__all__ = ["Metadata", "pynq"]
