/* I/O statistics by path of NVMe controllers. Their structs are private to SPDK's bdev_nvme module. */

#include <spdk/stdinc.h>
#include <spdk/nvme.h>

#include <bdev_nvme.h>

#include "shim.h"

/* Context of a walk over the bdev's channels, each on its own thread. */
struct opi_nvme_path_walk {
	struct spdk_bdev_desc	*desc;
	void			(*done)(void *arg, const struct opi_nvme_path_io *paths, size_t number);
	void			*arg;
	size_t			number;
	struct opi_nvme_path_io	paths[];
};

static void
opi_nvme_ignore_event(enum spdk_bdev_event_type type, struct spdk_bdev *bdev, void *ctx)
{
}

/* Starts a path's entry with its address and with the counters of channels that no longer exist. */
static void
opi_nvme_begin_path(struct opi_nvme_path_io *path, const struct nvme_ns *ns)
{
	path->ns = ns;
	/* Lock: a failover on another thread changes the active path. */
	pthread_mutex_lock(&ns->ctrlr->mutex);
	path->id = ns->ctrlr->active_path_id->trid;
	pthread_mutex_unlock(&ns->ctrlr->mutex);
	snprintf(path->source_address, sizeof(path->source_address), "%s",
		 spdk_nvme_ctrlr_get_opts(ns->ctrlr->ctrlr)->src_addr);
#ifdef OPI_OBSERVE_H
	opi_io_stat_add(&path->stat, &ns->gone);
#endif
}

static void
opi_nvme_add_channel(struct nvme_bdev_channel_iter *i, struct nvme_bdev *bdev,
		     struct nvme_bdev_channel *channel, void *ctx)
{
	struct opi_nvme_path_walk *walk = ctx;
	struct nvme_io_path *io_path;

	STAILQ_FOREACH(io_path, &channel->io_path_list, stailq) {
		for (size_t at = 0; at < walk->number && io_path->stat != NULL; at++) {
			if (walk->paths[at].ns == io_path->nvme_ns) {
				spdk_bdev_add_io_stat(&walk->paths[at].stat, io_path->stat);
			}
		}
	}
	nvme_bdev_for_each_channel_continue(i, 0);
}

static void
opi_nvme_paths_read(struct nvme_bdev *bdev, void *ctx, int status)
{
	struct opi_nvme_path_walk *walk = ctx;

	spdk_bdev_close(walk->desc);
	walk->done(walk->arg, walk->paths, walk->number);
	free(walk);
}

int
opi_nvme_read_paths(const char *bdev_name,
		    void (*done)(void *arg, const struct opi_nvme_path_io *paths, size_t number), void *arg)
{
	struct opi_nvme_path_walk *walk = NULL;
	struct spdk_bdev_desc *desc;
	struct nvme_bdev *bdev;
	struct nvme_ns *ns;
	size_t number = 0;
	int rc;

	rc = spdk_bdev_open_ext(bdev_name, false, opi_nvme_ignore_event, NULL, &desc);
	if (rc != 0) {
		return rc;
	}
	if (strcmp(spdk_bdev_get_module_name(spdk_bdev_desc_get_bdev(desc)), "nvme") != 0) {
		spdk_bdev_close(desc);
		return -ENODEV;
	}
	bdev = spdk_bdev_desc_get_bdev(desc)->ctxt;
	/* This list changes on the app thread only. */
	TAILQ_FOREACH(ns, &bdev->nvme_ns_list, tailq) {
		number++;
	}
	walk = calloc(1, sizeof(*walk) + number * sizeof(walk->paths[0]));
	if (walk == NULL) {
		spdk_bdev_close(desc);
		return -ENOMEM;
	}
	walk->desc = desc;
	walk->done = done;
	walk->arg = arg;
	TAILQ_FOREACH(ns, &bdev->nvme_ns_list, tailq) {
		opi_nvme_begin_path(&walk->paths[walk->number++], ns);
	}
	nvme_bdev_for_each_channel(bdev, opi_nvme_add_channel, walk, opi_nvme_paths_read);
	return 0;
}
