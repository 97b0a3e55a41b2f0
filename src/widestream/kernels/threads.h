// Threads that share the work of a call, and memory that they keep, for the kernels of this folder.

#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

// Runs a function in several threads of the pool that the caller's process already has (libgomp's GOMP_parallel).
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

// Memory that grows and is kept from call to call.
struct Room {
    char* memory = nullptr;
    size_t size = 0;
    ~Room() { free(memory); }
    float* floats(int64_t count) {
        const size_t bytes = (size_t)(count * 4 + 4095) / 4096 * 4096;
        if (bytes > size) {
            free(memory);
            memory = (char*)aligned_alloc(4096, bytes);
            if (!memory) abort();
            size = bytes;
        }
        return (float*)memory;
    }
};
