/* How a reactor without work sleeps and is woken (spdk/src/hooks/idle.rs). Weak: SPDK's own programs link without. */

#ifndef OPI_IDLE_H
#define OPI_IDLE_H

#include <stdint.h>

struct spdk_thread;

/* A turn of this core's reactor has ended: on its thread. It may sleep here, and returns for how many ticks it did;
 * busy_tsc and now are the reactor's. */
uint64_t __attribute__((weak)) opi_idle_turn(uint32_t core, uint64_t busy_tsc, uint64_t now);

/* What this descriptor is readable for ends the sleep of the reactor that calls this, until the descriptor is closed. */
void __attribute__((weak)) opi_idle_watch(int fd);

/* There is something for the reactor of this core: on any thread, after it has been queued. */
void __attribute__((weak)) opi_idle_wake(uint32_t core);

/* As opi_idle_wake, for the reactor of this thread; of SPDK's event library. */
void __attribute__((weak)) opi_idle_wake_thread(const struct spdk_thread *thread);

#endif
