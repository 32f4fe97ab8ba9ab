/* Failed I/O and flushes of bdevs: counted in lib/bdev/bdev.c, read by the program. */

#ifndef OPI_BDEV_H
#define OPI_BDEV_H

#include <stdbool.h>
#include <stdint.h>

#include "spdk/bdev.h"
#include "spdk/bdev_module.h"
#include "spdk/nvme_spec.h"

struct spdk_bdev_io_error_stat {
	uint32_t error_status[-SPDK_MIN_BDEV_IO_STATUS];
	/* Those that a device has answered, by the type of the I/O. Not those that hosts cause: aborts, fused
	 * commands, comparisons that find a difference, reservations of others. */
	uint32_t device_errors[SPDK_BDEV_NUM_IO_TYPES];
};

/* struct spdk_bdev_io_stat has num_flush_ops and flush_latency_ticks. */
#define OPI_BDEV_COUNTS_FLUSHES

/* All device errors of all bdevs. Any thread may read it. */
extern uint64_t g_opi_bdev_device_errors;

/* Whether the device is at fault for an I/O that has failed. */
static inline bool
opi_bdev_is_device_error(const struct spdk_bdev_io *bdev_io)
{
	switch (bdev_io->internal.status) {
	case SPDK_BDEV_IO_STATUS_ABORTED:
	case SPDK_BDEV_IO_STATUS_FIRST_FUSED_FAILED:
	case SPDK_BDEV_IO_STATUS_MISCOMPARE:
	case SPDK_BDEV_IO_STATUS_NOMEM:
		return false;
	case SPDK_BDEV_IO_STATUS_NVME_ERROR:
		switch (bdev_io->internal.error.nvme.sct) {
		case SPDK_NVME_SCT_GENERIC:
			return bdev_io->internal.error.nvme.sc != SPDK_NVME_SC_ABORTED_BY_REQUEST &&
			       bdev_io->internal.error.nvme.sc != SPDK_NVME_SC_RESERVATION_CONFLICT;
		case SPDK_NVME_SCT_MEDIA_ERROR:
			return bdev_io->internal.error.nvme.sc != SPDK_NVME_SC_COMPARE_FAILURE;
		default:
			return true;
		}
	default:
		return true;
	}
}

#endif
