/*
 * Marks memory that a pool has taken back, so that AddressSanitizer reports whoever uses it all the same:
 * pools hide from it what is free. Without the sanitizer both are nothing.
 */
#pragma once

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define OPI_POISON(start, length) __asan_poison_memory_region(start, length)
#define OPI_UNPOISON(start, length) __asan_unpoison_memory_region(start, length)
#else
#define OPI_POISON(start, length) ((void)(start), (void)(length))
#define OPI_UNPOISON(start, length) ((void)(start), (void)(length))
#endif
