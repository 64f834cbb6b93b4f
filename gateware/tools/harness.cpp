// Drives a Verilated SoC from within a process: the C functions that driver/simulator.py loads with ctypes.
//
// One tick is one cycle of the system clock. The CPU's clock ticks along unless the SoC says that the CPU is idle.
// Every wait has a limit in cycles. Nothing here is shared between instances.
//
// Errors of bus accesses: OK, BUS_ERROR (the SoC answered with an error), TIMED_OUT (no answer within the limit; at
// once if the clock is frozen).

#include <cstdint>
#include <deque>
#include <memory>

#include "Vsim.h"
#include "verilated.h"
#include "verilated_sym_props.h"
#include "verilated_syms.h"

namespace {

enum Status { OK = 0, BUS_ERROR = 1, TIMED_OUT = 2 };
enum Until { INTERRUPT = 0, ENGINE_PULSE = 1 };
enum Pad { STALLS = 0, WITHHOLD = 1, FROZEN = 2 };
constexpr int RESET_CYCLES = 8;
constexpr size_t UART_LIMIT = 65536;  // bytes kept; older ones are dropped

struct Soc {
    std::unique_ptr<VerilatedContext> context{new VerilatedContext};
    std::unique_ptr<Vsim> top;
    uint64_t cycles = 0;
    uint64_t pulses = 0;  // of the engine's interrupt
    bool frozen = false;
    std::deque<uint8_t> transmitted, received;  // UART, from and to the SoC

    Soc() : top(new Vsim{context.get()}) { reset(); }

    ~Soc() {
        // Verilator's scopes leave the context that their thread has current, which may be another instance's.
        Verilated::threadContextp(context.get());
        top.reset();
        Verilated::threadContextp(nullptr);
    }

    void tick() {
        Vsim& t = *top;
        t.cpu_clk = !t.cpu_idle;
        t.sys_clk = 1;
        t.eval();
        t.cpu_clk = 0;
        t.sys_clk = 0;
        t.eval();
        cycles++;
        pulses += t.engine_irq;
        if (t.serial_source_valid) {
            transmitted.push_back(t.serial_source_data);
            if (transmitted.size() > UART_LIMIT) transmitted.pop_front();
        }
        if (t.serial_sink_valid && t.serial_sink_ready) received.pop_front();
        if (t.serial_sink_valid || !received.empty()) {
            t.serial_sink_valid = !received.empty();
            t.serial_sink_data = received.empty() ? 0 : received.front();
        }
    }

    void reset() {
        top->serial_source_ready = 1;
        top->host_cyc = top->host_stb = 0;
        received.clear();
        transmitted.clear();
        top->sys_rst = 1;
        for (int i = 0; i < RESET_CYCLES; i++) tick();
        top->sys_rst = 0;
        pulses = 0;
    }

    Status access(uint32_t address, bool write, uint32_t data, uint32_t* answer, uint64_t limit) {
        Vsim& t = *top;
        if (frozen) return TIMED_OUT;
        t.host_adr = address >> 2;
        t.host_dat_w = data;
        t.host_sel = 0xf;
        t.host_we = write;
        t.host_cyc = t.host_stb = 1;
        t.eval();
        Status status = TIMED_OUT;
        for (uint64_t i = 0; i < limit && status == TIMED_OUT; i++) {
            if (t.host_ack || t.host_err) {
                status = t.host_err || t.bus_error ? BUS_ERROR : OK;
                if (answer) *answer = t.host_dat_r;
            }
            tick();
        }
        t.host_cyc = t.host_stb = 0;
        t.eval();
        return status;
    }
};

}  // namespace

extern "C" {

void* sentei_create() { return new Soc; }

void sentei_destroy(Soc* soc) { delete soc; }

void sentei_reset(Soc* soc) { soc->reset(); }

uint64_t sentei_cycles(Soc* soc) { return soc->cycles; }

int sentei_read(Soc* soc, uint32_t address, uint32_t* data, uint64_t limit) {
    return soc->access(address, false, 0, data, limit);
}

int sentei_write(Soc* soc, uint32_t address, uint32_t data, uint64_t limit) {
    return soc->access(address, true, data, nullptr, limit);
}

// Cycles run: `count`, or 0 if the clock is frozen.
uint64_t sentei_run(Soc* soc, uint64_t count) {
    if (soc->frozen) return 0;
    for (uint64_t i = 0; i < count; i++) soc->tick();
    return count;
}

// Run until the interrupt line is high (INTERRUPT), or the engine has raised more than `seen` pulses (ENGINE_PULSE).
// Returns 1, or 0 if `limit` cycles were not enough.
int sentei_run_until(Soc* soc, int until, uint64_t seen, uint64_t limit) {
    for (uint64_t i = 0;; i++) {
        if (until == INTERRUPT ? soc->top->irq : soc->pulses > seen) return 1;
        if (i == limit || soc->frozen) return 0;
        soc->tick();
    }
}

uint64_t sentei_engine_pulses(Soc* soc) { return soc->pulses; }

int sentei_interrupt(Soc* soc) { return soc->top->irq; }

void sentei_set(Soc* soc, int pad, uint32_t value) {
    if (pad == STALLS) soc->top->stalls = value;
    if (pad == WITHHOLD) soc->top->withhold = value;
    if (pad == FROZEN) soc->frozen = value;
}

// Bytes that the SoC has sent, at most `size`.
uint32_t sentei_uart_read(Soc* soc, uint8_t* data, uint32_t size) {
    uint32_t count = 0;
    while (count < size && !soc->transmitted.empty()) {
        data[count++] = soc->transmitted.front();
        soc->transmitted.pop_front();
    }
    return count;
}

void sentei_uart_write(Soc* soc, const uint8_t* data, uint32_t size) {
    soc->received.insert(soc->received.end(), data, data + size);
}

// Main memory as the SoC sees it, valid as long as the SoC lives; nullptr if the model does not show it.
void* sentei_memory(Soc* soc, uint64_t* size) {
    const VerilatedScope* scope = soc->context->scopeFind("TOP.sim");
    const VerilatedVar* memory = scope ? scope->varFind("main_ram") : nullptr;
    *size = memory ? memory->totalSize() : 0;
    return memory ? memory->datap() : nullptr;
}

}  // extern "C"
