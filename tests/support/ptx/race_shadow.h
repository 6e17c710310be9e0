// Finds conflicting accesses: two threads touch the same two bytes, at least one writes, not both atomically, and no
// barrier of their block lies between. Blocks of a launch are never ordered, and neither are threads of a warp.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>

namespace race {

constexpr int64_t NOBODY = -1, SEVERAL = -2;
constexpr int PER_BLOCK = 1024, CELLS = 64;

struct Access {
    int64_t thread = NOBODY;
    uint64_t epoch = 0;
    int line = 0;
    bool atomic = false;
};

// Two bytes: the last write, the last reads of two threads, and the block that read.
struct Cell {
    Access write, read[2];
    int64_t reading_block = NOBODY;
    // The thread whose asynchronous copy is under way.
    int64_t copying = NOBODY;
};

struct Page {
    Cell cell[CELLS];
};

class Shadow {
  public:
    bool watching = false;
    std::set<std::string> conflicts;

    void begin_launch() { global_.clear(); }
    void begin_block() { shared_.clear(); }

    // epoch: barriers passed so far.
    void touch(bool shared, uint64_t address, int bytes, bool write, Access now)
    {
        for (uint64_t at = address / 2; at <= (address + bytes - 1) / 2; ++at) {
            Cell& cell = (shared ? shared_ : global_)[at / CELLS].cell[at % CELLS];
            if (cell.copying != NOBODY)
                report(shared, "a copy under way", Access{cell.copying}, now);
            touch_cell(shared, cell, write, now);
        }
    }

    void set_copying(uint64_t address, int bytes, int64_t thread)
    {
        for (uint64_t at = address / 2; at <= (address + bytes - 1) / 2; ++at)
            shared_[at / CELLS].cell[at % CELLS].copying = thread;
    }

  private:
    std::unordered_map<uint64_t, Page> shared_, global_;

    static bool conflicting(const Access& before, const Access& now)
    {
        if (before.thread == NOBODY || before.thread == now.thread || (before.atomic && now.atomic))
            return false;
        return before.thread / PER_BLOCK != now.thread / PER_BLOCK || before.epoch == now.epoch;
    }

    void touch_cell(bool shared, Cell& cell, bool write, const Access& now)
    {
        const int64_t block = now.thread / PER_BLOCK;
        if (conflicting(cell.write, now))
            report(shared, write ? "write after write" : "read after write", cell.write, now);
        if (!write) {
            if (cell.read[0].thread != now.thread)
                cell.read[1] = cell.read[0];
            cell.read[0] = now;
            cell.reading_block = cell.reading_block == NOBODY || cell.reading_block == block ? block : SEVERAL;
            return;
        }
        for (const Access& read : cell.read)
            if (conflicting(read, now))
                report(shared, "write after read", read, now);
        if (cell.reading_block == SEVERAL && !now.atomic)
            report(shared, "write after read", cell.read[1], now);
        cell.write = now;
    }

    void report(bool shared, const char* what, const Access& before, const Access& now)
    {
        const bool same = before.thread / PER_BLOCK == now.thread / PER_BLOCK;
        conflicts.insert(std::string(what) + " in " + (shared ? "shared" : "global") + " memory, lines "
                         + std::to_string(before.line) + " and " + std::to_string(now.line)
                         + (same ? "" : ", in different blocks"));
    }
};

}  // namespace race
