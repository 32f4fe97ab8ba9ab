/* Thread and bdev helpers of vhost-user controllers. */

#include <spdk/stdinc.h>
#include <spdk/bdev_module.h>
#include <spdk/cpuset.h>
#include <spdk/thread.h>

#include <bdev_nvme.h>

#include "shim.h"

static bool
has_dma(struct spdk_bdev *bdev)
{
	struct spdk_nvme_ctrlr *ctrlr;

	if (strcmp(spdk_bdev_get_module_name(bdev), "nvme") != 0) {
		return false;
	}
	ctrlr = bdev_nvme_get_ctrlr(bdev);
	return ctrlr != NULL && spdk_nvme_ctrlr_get_transport_id(ctrlr)->trtype != SPDK_NVME_TRANSPORT_TCP;
}

bool
opi_bdev_needs_dma(struct spdk_bdev *bdev)
{
	struct spdk_bdev *other;

	if (has_dma(bdev)) {
		return true;
	}
	if (strcmp(spdk_bdev_get_module_name(bdev), "crypto") != 0) {
		return false;
	}
	/* The crypto module does not expose its base bdev. */
	for (other = spdk_bdev_first(); other != NULL; other = spdk_bdev_next(other)) {
		if (opi_bdev_claimed_by(other) != NULL && has_dma(other)) {
			return true;
		}
	}
	return false;
}

struct spdk_thread *
opi_thread_create(const char *name, uint32_t core)
{
	struct spdk_cpuset cores;

	spdk_cpuset_zero(&cores);
	spdk_cpuset_set_cpu(&cores, core, true);
	return spdk_thread_create(name, &cores);
}
