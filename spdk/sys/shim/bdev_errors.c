/* Statistics that SPDK counts through our changes: errors of devices, and flushes. */

#include <spdk/stdinc.h>
#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#if __has_include(<opi/bdev.h>)
#include <opi/bdev.h>
#endif

#include "shim.h"

void
opi_bdev_read_errors(const struct spdk_bdev *bdev, struct opi_bdev_errors *errors)
{
	*errors = (struct opi_bdev_errors) {};
#ifdef OPI_BDEV_H
	const struct spdk_bdev_io_error_stat *stat = bdev->internal.stat->io_error;

	for (int type = 0; stat != NULL && type < SPDK_BDEV_NUM_IO_TYPES; type++) {
		/* Reactors write concurrently: relaxed atomic loads prevent torn reads. */
		uint64_t number = __atomic_load_n(&stat->device_errors[type], __ATOMIC_RELAXED);

		switch (type) {
		case SPDK_BDEV_IO_TYPE_READ:
			errors->read += number;
			break;
		case SPDK_BDEV_IO_TYPE_WRITE:
		case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
			errors->write += number;
			break;
		case SPDK_BDEV_IO_TYPE_FLUSH:
			errors->flush += number;
			break;
		default:
			errors->other += number;
		}
	}
#endif
}

struct opi_bdev_flushes
opi_bdev_flushes_of(const struct spdk_bdev_io_stat *stat)
{
	struct opi_bdev_flushes flushes = {};

#ifdef OPI_BDEV_COUNTS_FLUSHES
	flushes.number = stat->num_flush_ops;
	flushes.ticks = stat->flush_latency_ticks;
#endif
	return flushes;
}

uint64_t
opi_bdev_device_errors(void)
{
#ifdef OPI_BDEV_H
	return __atomic_load_n(&g_opi_bdev_device_errors, __ATOMIC_RELAXED);
#else
	return 0;
#endif
}
