/* Reads SPDK's state for metrics and for the detection of stalled reactors, and sizes threads' caches of buffers. */

#include <spdk/stdinc.h>
#include <spdk/accel.h>
#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#include <spdk_internal/event.h>
#if __has_include(<opi/observe.h>)
#include <opi/observe.h>
#endif

#include "shim.h"

bool
opi_reactor_read(uint32_t core, struct opi_reactor_time *time)
{
	struct spdk_reactor *reactor = spdk_reactor_get(core);

	if (reactor == NULL) {
		return false;
	}
	/* The reactor's own thread writes these concurrently: relaxed atomic loads prevent torn reads. */
	time->busy_ticks = __atomic_load_n(&reactor->busy_tsc, __ATOMIC_RELAXED);
	time->idle_ticks = __atomic_load_n(&reactor->idle_tsc, __ATOMIC_RELAXED);
	time->last_turn = __atomic_load_n(&reactor->tsc_last, __ATOMIC_RELAXED);
	return true;
}

bool
opi_watch_polls(void (*polled)(const struct spdk_thread *thread))
{
#if __has_include(<opi/observe.h>)
	opi_thread_polled = polled;
	return true;
#else
	return false;
#endif
}

struct opi_bdev_reading {
	struct spdk_bdev_io_stat	stat;
	opi_bdev_read			done;
	void				*arg;
};

static void
opi_bdev_was_read(struct spdk_bdev *bdev, struct spdk_bdev_io_stat *stat, void *arg, int status)
{
	struct opi_bdev_reading *reading = arg;
	struct opi_bdev_errors errors;

	opi_bdev_read_errors(bdev, &errors);
	reading->done(reading->arg, stat, status == 0 ? &errors : NULL, status);
	free(reading);
}

void
opi_bdev_read_counters(struct spdk_bdev *bdev, opi_bdev_read done, void *arg)
{
	struct opi_bdev_reading *reading = calloc(1, sizeof(*reading));

	if (reading == NULL) {
		done(arg, NULL, NULL, -ENOMEM);
		return;
	}
	reading->done = done;
	reading->arg = arg;
	spdk_bdev_get_device_stat(bdev, &reading->stat, SPDK_BDEV_RESET_STAT_NONE,
				  opi_bdev_was_read, reading);
}

/* Range 1 us to 16 s, four buckets per power of two: 800 bytes per channel. */
static void
opi_bdev_histogram_shape(struct spdk_bdev_enable_histogram_opts *opts)
{
	spdk_bdev_enable_histogram_opts_init(opts, sizeof(*opts));
	opts->granularity = 2;
	opts->min_nsec = 1000;
	opts->max_nsec = 16 * SPDK_SEC_TO_NSEC;
}

struct opi_bdev_histogram {
	struct spdk_histogram_data	*data;
	opi_bdev_bucket			bucket;
	void				(*done)(void *arg, int status);
	void				*arg;
};

static void
opi_bdev_histogram_done(struct opi_bdev_histogram *reading, int status)
{
	reading->done(reading->arg, status);
	spdk_histogram_data_free(reading->data);
	free(reading);
}

static void
opi_bdev_histogram_bucket(void *arg, uint64_t start, uint64_t end, uint64_t count, uint64_t total,
			  uint64_t so_far)
{
	const struct opi_bdev_histogram *reading = arg;

	if (count != 0) {
		reading->bucket(reading->arg, end, count);
	}
}

static void
opi_bdev_histogram_was_read(void *arg, int status, struct spdk_histogram_data *histogram)
{
	struct opi_bdev_histogram *reading = arg;

	if (status == 0) {
		spdk_histogram_data_iterate(histogram, opi_bdev_histogram_bucket, reading);
	}
	opi_bdev_histogram_done(reading, status);
}

static void
opi_bdev_histogram_begins(void *arg, int status)
{
	opi_bdev_histogram_done(arg, status);
}

void
opi_bdev_read_histogram(struct spdk_bdev *bdev, opi_bdev_bucket bucket,
			void (*done)(void *arg, int status), void *arg)
{
	struct opi_bdev_histogram *reading = calloc(1, sizeof(*reading));
	struct spdk_bdev_enable_histogram_opts opts;

	if (reading == NULL) {
		done(arg, -ENOMEM);
		return;
	}
	*reading = (struct opi_bdev_histogram) {
		.bucket = bucket, .done = done, .arg = arg,
	};
	if (!bdev->internal.histogram_enabled) {
		opi_bdev_histogram_shape(&opts);
		spdk_bdev_histogram_enable_ext(bdev, opi_bdev_histogram_begins, reading, true, &opts);
		return;
	}
	/* The bdev's own shape: an operator may have chosen another one over JSON-RPC. */
	reading->data = spdk_histogram_data_alloc_sized_ext(bdev->internal.histogram_granularity,
			bdev->internal.histogram_min_val, bdev->internal.histogram_max_val);
	if (reading->data == NULL) {
		opi_bdev_histogram_done(reading, -ENOMEM);
		return;
	}
	spdk_bdev_histogram_get(bdev, reading->data, opi_bdev_histogram_was_read, reading);
}

#ifdef OPI_OBSERVE_H
static void
opi_iobuf_copy(struct opi_iobuf_state *state, const struct opi_iobuf_pool *pool)
{
	*state = (struct opi_iobuf_state) {
		.buffer_bytes = pool->buffer_bytes, .buffers = pool->buffers, .free = pool->free, .kept = pool->kept,
	};
}
#endif

void
opi_iobuf_state(struct opi_iobuf_state *small, struct opi_iobuf_state *large)
{
#ifdef OPI_OBSERVE_H
	struct opi_iobuf_pool pools[2];

	opi_iobuf_read(&pools[0], &pools[1]);
	opi_iobuf_copy(small, &pools[0]);
	opi_iobuf_copy(large, &pools[1]);
#else
	*small = *large = (struct opi_iobuf_state) {};
#endif
}

int
opi_iobuf_keep(uint32_t small, uint32_t large)
{
	struct spdk_bdev_opts bdev;
	struct spdk_accel_opts accel;

	spdk_bdev_get_opts(&bdev, sizeof(bdev));
	bdev.iobuf_small_cache_size = small;
	bdev.iobuf_large_cache_size = large;
	if (spdk_bdev_set_opts(&bdev) != 0) {
		return -EINVAL;
	}
	spdk_accel_get_opts(&accel, sizeof(accel));
	accel.small_cache_size = small;
	accel.large_cache_size = large;
	return spdk_accel_set_opts(&accel);
}
