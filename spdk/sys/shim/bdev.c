/* Creation, inspection and modification of bdevs. */

#include <spdk/stdinc.h>
#include <spdk/accel.h>
#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#include <spdk/env.h>

#include <rte_malloc.h>
#include <rte_memory.h>

#include <bdev_aio.h>
#include <bdev_malloc.h>
#include <bdev_null.h>
#include <vbdev_crypto.h>
#include <vbdev_delay.h>

#include "shim.h"

int
opi_bdev_malloc_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
		       uint32_t block_size, uint32_t metadata_size)
{
	struct malloc_bdev_opts opts = {
		.name = (char *)name,
		.num_blocks = num_blocks,
		.block_size = block_size,
		.md_size = metadata_size,
		/* NVMe-oF exports interleaved metadata only. */
		.md_interleave = metadata_size != 0,
		.numa_id = SPDK_ENV_NUMA_ID_ANY,
	};
	struct spdk_bdev *bdev;

	spdk_uuid_copy(&opts.uuid, uuid);
	return create_malloc_disk(&bdev, &opts);
}

void
opi_memory_read(struct opi_memory *memory)
{
	struct rte_malloc_socket_stats stats;
	int socket;

	memset(memory, 0, sizeof(*memory));
	for (socket = 0; socket < RTE_MAX_NUMA_NODES; socket++) {
		if (rte_malloc_get_socket_stats(socket, &stats) != 0) {
			continue;
		}
		memory->bytes += stats.heap_totalsz_bytes;
		memory->free += stats.heap_freesz_bytes;
		if (stats.greatest_free_size > memory->largest_free) {
			memory->largest_free = stats.greatest_free_size;
		}
	}
}

int
opi_bdev_null_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
		     uint32_t block_size)
{
	struct null_bdev_opts opts = {
		.name = (char *)name,
		.num_blocks = num_blocks,
		.block_size = block_size,
	};
	struct spdk_bdev *bdev;

	spdk_uuid_copy(&opts.uuid, uuid);
	return bdev_null_create(&bdev, &opts);
}

int
opi_bdev_aio_create(const char *name, const struct spdk_uuid *uuid, const char *filename,
		    uint32_t block_size, bool readonly)
{
	return create_aio_bdev(name, filename, block_size, readonly, false, uuid, false);
}

int
opi_bdev_aio_rescan(const char *name)
{
	return bdev_aio_rescan(name);
}

const char *
opi_bdev_claimed_by(const struct spdk_bdev *bdev)
{
	const struct spdk_bdev_module_claim *claim;

	switch (bdev->internal.claim_type) {
	case SPDK_BDEV_CLAIM_NONE:
		return NULL;
	case SPDK_BDEV_CLAIM_EXCL_WRITE:
		return bdev->internal.claim.v1.module->name;
	default:
		claim = TAILQ_FIRST(&bdev->internal.claim.v2.claims);
		return claim != NULL && claim->module != NULL ? claim->module->name : "unknown";
	}
}

int
opi_bdev_set_num_blocks(struct spdk_bdev *bdev, uint64_t num_blocks)
{
	return spdk_bdev_notify_blockcnt_change(bdev, num_blocks);
}

void
opi_bdev_unregister(struct spdk_bdev *bdev, void (*done)(void *arg, int status), void *arg)
{
	spdk_bdev_unregister(bdev, done, arg);
}

void
opi_bdev_set_qos_limits(struct spdk_bdev *bdev, uint64_t *limits,
			void (*done)(void *arg, int status), void *arg)
{
#ifdef OPI_QOS_TAKES_TIME_SLICE
	/* 0 keeps the default time slice, which is fixed in other builds. */
	spdk_bdev_set_qos_rate_limits(bdev, limits, 0, done, arg);
#else
	spdk_bdev_set_qos_rate_limits(bdev, limits, done, arg);
#endif
}

int
opi_bdev_crypto_create(const char *name, const char *base, const char *hex_key, const char *hex_key2)
{
	struct spdk_accel_crypto_key_create_param param = {
		.cipher = "AES_XTS",
		.hex_key = (char *)hex_key,
		.hex_key2 = (char *)hex_key2,
		.key_name = (char *)name,
	};
	struct spdk_accel_crypto_key *key;
	struct vbdev_crypto_opts *opts;
	int rc;

	rc = spdk_accel_crypto_key_create(&param);
	if (rc != 0) {
		return rc;
	}
	key = spdk_accel_crypto_key_get(name);
	opts = create_crypto_opts_by_name((char *)name, (char *)base, key, true);
	rc = opts != NULL ? create_crypto_disk(opts) : -ENOMEM;
	if (rc != 0) {
		if (opts != NULL) {
			free_crypto_opts(opts);
		}
		spdk_accel_crypto_key_destroy(key);
	}
	return rc;
}

void
opi_bdev_crypto_delete(const char *name, void (*done)(void *arg, int status), void *arg)
{
	delete_crypto_disk(name, done, arg);
}

int
opi_bdev_delay_create(const char *name, const char *base, const struct opi_bdev_delays *delays)
{
	/* An all-zero UUID makes SPDK derive one from the base bdev's. */
	struct spdk_uuid uuid = {};

	return create_delay_disk(base, name, &uuid, delays->avg_read_us, delays->p99_read_us,
				 delays->avg_write_us, delays->p99_write_us);
}

int
opi_bdev_delay_set(const char *name, const struct opi_bdev_delays *delays)
{
	const uint64_t values[] = {
		[DELAY_AVG_READ] = delays->avg_read_us,
		[DELAY_P99_READ] = delays->p99_read_us,
		[DELAY_AVG_WRITE] = delays->avg_write_us,
		[DELAY_P99_WRITE] = delays->p99_write_us,
	};
	int rc = 0;

	for (int type = DELAY_AVG_READ; rc == 0 && type < DELAY_NONE; type++) {
		rc = vbdev_delay_update_latency_value((char *)name, values[type], type);
	}
	return rc;
}

void
opi_bdev_delay_delete(const char *name, void (*done)(void *arg, int status), void *arg)
{
	delete_delay_disk(name, done, arg);
}

/* A stand-in takes no I/O. */
static void
stand_in_submit(struct spdk_io_channel *ch, struct spdk_bdev_io *io)
{
	spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_FAILED);
}

static bool
stand_in_supports(void *ctx, enum spdk_bdev_io_type type)
{
	return false;
}

static struct spdk_io_channel *
stand_in_channel(void *ctx)
{
	return NULL;
}

static int
stand_in_destruct(void *ctx)
{
	struct spdk_bdev *bdev = ctx;

	free(bdev->name);
	free(bdev);
	return 0;
}

static const struct spdk_bdev_fn_table g_stand_in_fns = {
	.destruct = stand_in_destruct,
	.submit_request = stand_in_submit,
	.io_type_supported = stand_in_supports,
	.get_io_channel = stand_in_channel,
};

int
opi_bdev_stand_in(const char *module, const char *name)
{
	struct spdk_bdev *bdev = calloc(1, sizeof(*bdev));
	int rc = -ENOMEM;

	if (bdev == NULL) {
		return rc;
	}
	bdev->name = strdup(name);
	if (bdev->name == NULL) {
		free(bdev);
		return rc;
	}
	bdev->product_name = "stand-in";
	bdev->module = spdk_bdev_module_list_find(module);
	bdev->fn_table = &g_stand_in_fns;
	bdev->ctxt = bdev;
	bdev->blocklen = 512;
	bdev->blockcnt = 1;
	rc = bdev->module != NULL ? spdk_bdev_register(bdev) : -ENOENT;
	/* With -ENOMEM SPDK may have registered the bdev and destructed it already; freeing it again would be a
	 * double free. */
	if (rc != 0 && rc != -ENOMEM) {
		stand_in_destruct(bdev);
	}
	return rc;
}
