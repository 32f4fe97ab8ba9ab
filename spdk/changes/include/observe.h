/* What is counted for metrics: in lib/thread, lib/nvmf and module/bdev/nvme, read by the program. */

#ifndef OPI_OBSERVE_H
#define OPI_OBSERVE_H

#include <stdint.h>

#include "spdk/bdev.h"

/* A pool of buffers for I/O. */
struct opi_iobuf_pool {
	uint64_t	buffer_bytes;
	uint64_t	buffers;
	/* In the pool itself. */
	uint64_t	free;
	/* Free too, but a thread keeps them for itself: as the last spdk_iobuf_get_stats has found. */
	uint64_t	kept;
};

struct spdk_thread;

/* Called after each poll of a thread, where it ran. Set before the reactors run, or NULL. */
extern void (*opi_thread_polled)(const struct spdk_thread *thread);

/* On the app thread. */
void opi_iobuf_read(struct opi_iobuf_pool *small, struct opi_iobuf_pool *large);

/* Adds counters to a sum that other threads add to and read meanwhile. */
static inline void
opi_io_stat_add(struct spdk_bdev_io_stat *sum, const struct spdk_bdev_io_stat *stat)
{
#define OPI_ADD(field) \
	__atomic_fetch_add(&sum->field, __atomic_load_n(&stat->field, __ATOMIC_RELAXED), __ATOMIC_RELAXED)
	OPI_ADD(bytes_read);
	OPI_ADD(num_read_ops);
	OPI_ADD(read_latency_ticks);
	OPI_ADD(bytes_written);
	OPI_ADD(num_write_ops);
	OPI_ADD(write_latency_ticks);
	OPI_ADD(bytes_unmapped);
	OPI_ADD(num_unmap_ops);
	OPI_ADD(unmap_latency_ticks);
#undef OPI_ADD
}

#endif
