/* NVMe controllers, remote and PCIe. Their structs are private to SPDK's bdev_nvme module. */

#include <spdk/stdinc.h>
#include <spdk/nvme.h>
#include <spdk/nvmf_spec.h>
#include <spdk/string.h>
#include <spdk/util.h>
#include <spdk_internal/thread.h>

#include <bdev_nvme.h>

#include "shim.h"

int
opi_nvme_configure(const struct opi_nvme_limits *limits)
{
	struct spdk_bdev_nvme_opts opts;

	spdk_bdev_nvme_get_opts(&opts, sizeof(opts));
	opts.io_path_stat = true;
	opts.dhchap_digests = limits->dhchap.hashes;
	opts.dhchap_dhgroups = limits->dhchap.groups;
	opts.tcp_connect_timeout_ms = limits->tcp_connect_ms;
	opts.keep_alive_timeout_ms = limits->keep_alive_ms;
	/* On a timeout, unpatched SPDK reads a register of the unresponsive peer and blocks the reactor until
	 * that ends. I/O timeouts are therefore set only for an SPDK with our changes. */
#if __has_include(<opi/initiator.h>)
	opts.timeout_us = limits->io_us;
	opts.timeout_admin_us = limits->admin_us;
	opts.action_on_timeout = SPDK_BDEV_NVME_TIMEOUT_ACTION_RESET;
#endif
	return spdk_bdev_nvme_set_opts(&opts);
}

int
opi_nvme_attach(const struct opi_nvme_attach *attach, spdk_bdev_nvme_create_cb done, void *arg)
{
	struct spdk_nvme_transport_id id = *attach->id;
	struct spdk_nvme_ctrlr_opts driver;
	struct spdk_bdev_nvme_ctrlr_opts bdev = {};
	struct spdk_bdev_nvme_opts all;

	spdk_bdev_nvme_get_opts(&all, sizeof(all));
	spdk_nvme_ctrlr_get_default_ctrlr_opts(&driver, sizeof(driver));
	if (attach->hostnqn != NULL) {
		snprintf(driver.hostnqn, sizeof(driver.hostnqn), "%s", attach->hostnqn);
	}
	if (attach->source_address != NULL) {
		snprintf(driver.src_addr, sizeof(driver.src_addr), "%s", attach->source_address);
	}
	if (attach->source_port != NULL) {
		snprintf(driver.src_svcid, sizeof(driver.src_svcid), "%s", attach->source_port);
	}
	if (attach->num_io_queues != 0) {
		driver.num_io_queues = attach->num_io_queues;
	}
	if (attach->io_queue_size != 0) {
		driver.io_queue_size = attach->io_queue_size;
	}
	/* Applies also if keys are set later. */
	driver.dhchap_digests = all.dhchap_digests;
	driver.dhchap_dhgroups = all.dhchap_dhgroups;
	driver.header_digest = attach->header_digest;
	driver.data_digest = attach->data_digest;
	if (attach->timeout_ms != 0) {
		driver.fabrics_connect_timeout_us = attach->timeout_ms * UINT64_C(1000);
		driver.admin_timeout_ms = attach->timeout_ms;
	}

	spdk_bdev_nvme_get_default_ctrlr_opts(&bdev);
	bdev.ctrlr_loss_timeout_sec = attach->ctrlr_loss_timeout_sec;
	bdev.reconnect_delay_sec = attach->reconnect_delay_sec;
	bdev.fast_io_fail_timeout_sec = attach->fast_io_fail_timeout_sec;
	bdev.psk = attach->psk_name;
	bdev.dhchap_key = attach->dhchap_name;
	bdev.dhchap_ctrlr_key = attach->dhchap_ctrlr_name;
	bdev.multipath = attach->multipath;
	return spdk_bdev_nvme_create(&id, attach->name, NULL, 0, done, arg, &driver, &bdev);
}

/* SPDK stores the source address of a connection's first path only, and uses it for all paths of that connection. */
static bool
opi_nvme_comes_from(const struct nvme_ctrlr *ctrlr, const char *source)
{
	return strcmp(spdk_nvme_ctrlr_get_opts(ctrlr->ctrlr)->src_addr, source) == 0;
}

/* Finds the connection of controller `name` that has the path, and copies the path's ID to `found`. */
static struct nvme_ctrlr *
opi_nvme_find(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
	      struct spdk_nvme_path_id *found)
{
	struct nvme_bdev_ctrlr *controller = nvme_bdev_ctrlr_get_by_name(name);
	struct spdk_nvme_path_id *path;
	struct nvme_ctrlr *ctrlr;

	if (controller == NULL) {
		return NULL;
	}
	TAILQ_FOREACH(ctrlr, &controller->ctrlrs, tailq) {
		if (!opi_nvme_comes_from(ctrlr, source)) {
			continue;
		}
		/* Lock: a failover on another thread reorders the list. */
		pthread_mutex_lock(&ctrlr->mutex);
		TAILQ_FOREACH(path, &ctrlr->trids, link) {
			if (spdk_nvme_transport_id_compare(&path->trid, id) == 0) {
				*found = *path;
				break;
			}
		}
		pthread_mutex_unlock(&ctrlr->mutex);
		if (path != NULL) {
			return ctrlr;
		}
	}
	return NULL;
}

struct nvme_ctrlr *
opi_nvme_connection(const char *name, const struct spdk_nvme_transport_id *id, const char *source)
{
	struct spdk_nvme_path_id path;

	return opi_nvme_find(name, id, source, &path);
}

int
opi_nvme_detach(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		spdk_bdev_nvme_delete_cb done, void *arg)
{
	struct spdk_nvme_path_id path = {};

	if (id != NULL && nvme_bdev_ctrlr_get_by_name(name) != NULL &&
	    opi_nvme_find(name, id, source, &path) == NULL) {
		return -ENXIO;
	}
	return spdk_bdev_nvme_delete(name, &path, done, arg);
}

int
opi_nvme_reset(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
	       void (*done)(void *arg, int status), void *arg)
{
	struct nvme_ctrlr *ctrlr = opi_nvme_connection(name, id, source);

	if (ctrlr == NULL || ctrlr->destruct) {
		return -ENXIO;
	}
	/* SPDK would return the same, and log an error each time. */
	if (ctrlr->resetting) {
		return -EBUSY;
	}
	nvme_ctrlr_op_rpc(ctrlr, NVME_CTRLR_OP_RESET, done, arg);
	return 0;
}

void
opi_nvme_end_attempt(const char *name, const struct spdk_nvme_transport_id *id, const char *source)
{
	struct nvme_ctrlr *ctrlr = opi_nvme_connection(name, id, source);

	/* While a reset runs, this poller drives its reconnect attempt; during destruction it drives the detach
	 * instead. */
	if (ctrlr != NULL && !ctrlr->destruct && ctrlr->resetting && ctrlr->reset_detach_poller != NULL) {
		spdk_nvme_ctrlr_fail(ctrlr->ctrlr);
	}
}

struct opi_nvme_name_walk {
	opi_nvme_name_fn	fn;
	void			*arg;
};

static void
opi_nvme_on_controller(struct nvme_bdev_ctrlr *controller, void *ctx)
{
	struct opi_nvme_name_walk *walk = ctx;

	walk->fn(walk->arg, controller->name);
}

void
opi_nvme_for_each_controller(opi_nvme_name_fn fn, void *arg)
{
	struct opi_nvme_name_walk walk = { .fn = fn, .arg = arg };

	nvme_bdev_ctrlr_for_each(opi_nvme_on_controller, &walk);
}

static enum opi_nvme_path_state
opi_nvme_state(struct nvme_ctrlr *path)
{
	if (path->destruct) {
		return OPI_NVME_PATH_DELETING;
	} else if (path->resetting) {
		return OPI_NVME_PATH_RESETTING;
	} else if (path->reconnect_is_delayed) {
		return OPI_NVME_PATH_RECONNECTING;
	} else if (spdk_nvme_ctrlr_is_failed(path->ctrlr)) {
		return OPI_NVME_PATH_FAILED;
	} else if (path->disabled) {
		return OPI_NVME_PATH_DISABLED;
	}
	return OPI_NVME_PATH_CONNECTED;
}

/* A standby path counts as failed until SPDK's retry, reconnect_delay_sec after its last failure. */
static enum opi_nvme_path_state
opi_nvme_standby_state(const struct nvme_ctrlr *ctrlr, const struct spdk_nvme_path_id *id)
{
	uint64_t delay = ctrlr->opts.reconnect_delay_sec * spdk_get_ticks_hz();

	if (id->last_failed_tsc != 0 && spdk_get_ticks() < id->last_failed_tsc + delay) {
		return OPI_NVME_PATH_FAILED;
	}
	return OPI_NVME_PATH_STANDBY;
}

/* SPDK has no call to cancel an attach. Each attempt is driven by a poller of this name on the app thread. What
 * the attempt has allocated is released only when the process exits. */
void
opi_nvme_end_attempts(void)
{
	struct spdk_poller *poller = spdk_thread_get_first_timed_poller(spdk_get_thread());

	for (; poller != NULL; poller = spdk_thread_get_next_timed_poller(poller)) {
		struct spdk_poller *attempt = poller;

		if (strcmp(spdk_poller_get_name(poller), "bdev_nvme_async_poll") == 0) {
			spdk_poller_unregister(&attempt);
		}
	}
}

uint32_t
opi_nvme_count(void)
{
	struct nvme_bdev_ctrlr *controller;
	uint32_t count = 0;

	TAILQ_FOREACH(controller, &g_nvme_bdev_ctrlrs, tailq) {
		count++;
	}
	return count;
}

void
opi_nvme_give_up(void)
{
	struct nvme_bdev_ctrlr *controller;
	struct nvme_ctrlr *ctrlr;

	TAILQ_FOREACH(controller, &g_nvme_bdev_ctrlrs, tailq) {
		TAILQ_FOREACH(ctrlr, &controller->ctrlrs, tailq) {
			if (!spdk_nvme_ctrlr_is_fabrics(ctrlr->ctrlr)) {
				continue;
			}
			/* Otherwise the bdev module would queue the aborted I/O until the path is back. */
			pthread_mutex_lock(&ctrlr->mutex);
			ctrlr->fast_io_fail_timedout = true;
			pthread_mutex_unlock(&ctrlr->mutex);
			if (!spdk_nvme_ctrlr_is_failed(ctrlr->ctrlr)) {
				spdk_nvme_ctrlr_fail(ctrlr->ctrlr);
			}
		}
	}
}

int
opi_nvme_for_each_path(const char *name, opi_nvme_path_fn fn, void *arg)
{
	struct nvme_bdev_ctrlr *controller = nvme_bdev_ctrlr_get_by_name(name);
	struct spdk_nvme_path_id *id;
	struct nvme_ctrlr *ctrlr;

	if (controller == NULL) {
		return -ENODEV;
	}
	TAILQ_FOREACH(ctrlr, &controller->ctrlrs, tailq) {
		/* Lock: a failover on another thread reorders the list. */
		pthread_mutex_lock(&ctrlr->mutex);
		TAILQ_FOREACH(id, &ctrlr->trids, link) {
			struct opi_nvme_path path = {
				.id = &id->trid,
				.source_address = spdk_nvme_ctrlr_get_opts(ctrlr->ctrlr)->src_addr,
				.source_port = spdk_nvme_ctrlr_get_opts(ctrlr->ctrlr)->src_svcid,
				.hostnqn = spdk_nvme_ctrlr_get_opts(ctrlr->ctrlr)->hostnqn,
				.cntlid = spdk_nvme_ctrlr_get_data(ctrlr->ctrlr)->cntlid,
				.state = id == ctrlr->active_path_id ? opi_nvme_state(ctrlr) :
					 opi_nvme_standby_state(ctrlr, id),
				.active = id == ctrlr->active_path_id,
			};

			fn(arg, &path);
		}
		pthread_mutex_unlock(&ctrlr->mutex);
	}
	return 0;
}

/* Copies the identifiers of a namespace. `ns` may be NULL. */
static void
opi_nvme_identify(struct spdk_nvme_ns *ns, struct opi_nvme_namespace *found)
{
	const struct spdk_nvme_ns_data *data;
	const struct spdk_uuid *uuid;

	if (ns == NULL) {
		return;
	}
	data = spdk_nvme_ns_get_data(ns);
	uuid = spdk_nvme_ns_get_uuid(ns);
	if (uuid != NULL) {
		memcpy(found->uuid, uuid, sizeof(found->uuid));
	}
	if (data != NULL) {
		memcpy(found->nguid, data->nguid, sizeof(found->nguid));
		memcpy(found->eui64, &data->eui64, sizeof(found->eui64));
	}
}

int
opi_nvme_for_each_namespace(const char *name, opi_nvme_namespace_fn fn, void *arg)
{
	struct nvme_bdev_ctrlr *controller = nvme_bdev_ctrlr_get_by_name(name);
	struct nvme_bdev *bdev;

	if (controller == NULL) {
		return -ENODEV;
	}
	TAILQ_FOREACH(bdev, &controller->bdevs, tailq) {
		struct nvme_ns *path = TAILQ_FIRST(&bdev->nvme_ns_list);
		struct opi_nvme_namespace found = {
			.bdev = bdev->disk.name,
			.nsid = bdev->nsid,
			.over_all_paths = bdev->mp_policy == BDEV_NVME_MP_POLICY_ACTIVE_ACTIVE,
		};

		opi_nvme_identify(path != NULL ? path->ns : NULL, &found);
		fn(arg, &found);
	}
	return 0;
}

int
opi_nvme_for_each_missing(const char *name, opi_nvme_namespace_fn fn, void *arg)
{
	struct nvme_bdev_ctrlr *controller = nvme_bdev_ctrlr_get_by_name(name);
	struct nvme_ctrlr *ctrlr;
	uint32_t nsid;

	if (controller == NULL) {
		return -ENODEV;
	}
	TAILQ_FOREACH(ctrlr, &controller->ctrlrs, tailq) {
		/* A controller in destruction has released its namespaces already. */
		if (ctrlr->destruct) {
			continue;
		}
		for (nsid = spdk_nvme_ctrlr_get_first_active_ns(ctrlr->ctrlr); nsid != 0;
		     nsid = spdk_nvme_ctrlr_get_next_active_ns(ctrlr->ctrlr, nsid)) {
			struct opi_nvme_namespace found = { .nsid = nsid };
			char bdev[128];

			if (nvme_ctrlr_get_ns(ctrlr, nsid) != NULL) {
				continue;
			}
			snprintf(bdev, sizeof(bdev), "%sn%" PRIu32, name, nsid);
			found.bdev = bdev;
			opi_nvme_identify(spdk_nvme_ctrlr_get_ns(ctrlr->ctrlr, nsid), &found);
			fn(arg, &found);
		}
	}
	return 0;
}
