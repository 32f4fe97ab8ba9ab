/* Hosts connected to the NVMe-oF target: identity, queues, disconnection. */

#include <spdk/stdinc.h>
#include <spdk/env.h>
#include <spdk/nvmf.h>
#include <spdk/nvmf_transport.h>
#include <spdk/thread.h>
#if __has_include(<opi/observe.h>)
#include <opi/observe.h>
#endif

#include "shim.h"

/* The upper bound of queues reported in one step of a walk, so that a step does not stall its reactor. */
#define OPI_QUEUES_AT_ONCE 64

/* Weak: part of spdk/changes. An SPDK without that change does not expose the host NQN. */
const char *__attribute__((weak)) nvmf_ctrlr_get_hostnqn(const struct spdk_nvmf_ctrlr *ctrlr);

static const char *
opi_nvmf_hostnqn(const struct spdk_nvmf_ctrlr *ctrlr)
{
	return nvmf_ctrlr_get_hostnqn == NULL ? NULL : nvmf_ctrlr_get_hostnqn(ctrlr);
}

static bool
opi_nvmf_is_guest(const struct spdk_nvmf_qpair *qpair)
{
	return spdk_nvmf_get_transport_type(qpair->transport) == SPDK_NVME_TRANSPORT_VFIOUSER;
}

void
opi_nvmf_describe_queue(struct spdk_nvmf_qpair *qpair, struct opi_nvmf_queue *queue)
{
	struct spdk_nvmf_ctrlr *ctrlr = qpair->ctrlr;
	struct spdk_nvme_transport_id id = {};

	*queue = (struct opi_nvmf_queue) {
		.ctrlr = ctrlr,
		.subnqn = spdk_nvmf_subsystem_get_nqn(spdk_nvmf_ctrlr_get_subsystem(ctrlr)),
		.hostnqn = opi_nvmf_hostnqn(ctrlr),
		.size = qpair->sq_head_max + 1U,
		.core = spdk_env_get_current_core(),
		.cntlid = spdk_nvmf_ctrlr_get_id(ctrlr),
		.qid = qpair->qid,
		.is_guest = opi_nvmf_is_guest(qpair),
#ifdef OPI_OBSERVE_H
		.completed_io = qpair->completed_io,
#endif
	};
	if (qpair->qid != 0) {
		return;
	}
	if (queue->is_guest) {
		/* A vfio-user queue has no peer address; its socket's directory identifies the guest. */
		if (spdk_nvmf_qpair_get_listen_trid(qpair, &id) == 0) {
			snprintf(queue->address, sizeof(queue->address), "%s", id.traddr);
		}
	} else if (spdk_nvmf_qpair_get_peer_trid(qpair, &id) == 0) {
		snprintf(queue->address, sizeof(queue->address),
			 id.adrfam == SPDK_NVMF_ADRFAM_IPV6 ? "[%s]:%s" : "%s:%s", id.traddr, id.trsvcid);
	}
}

/* The counter is written by the group's thread, so it is read on that thread. */
static void
opi_nvmf_tell_group(const struct opi_nvmf_walk *walk, const struct spdk_nvmf_poll_group *group)
{
	struct opi_nvmf_group told = {
		.group = group,
		.completed_io = group->stat.completed_nvme_io,
		.core = spdk_env_get_current_core(),
	};

	walk->group(walk->arg, &told);
}

static void
opi_nvmf_tell_queue(const struct opi_nvmf_walk *walk, struct spdk_nvmf_qpair *qpair)
{
	struct opi_nvmf_queue queue = {};

	/* A queue that is not let in yet, or no longer, may be anybody's. */
	if (qpair->ctrlr != NULL && qpair->state == SPDK_NVMF_QPAIR_ENABLED) {
		opi_nvmf_describe_queue(qpair, &queue);
	} else {
		queue.is_guest = opi_nvmf_is_guest(qpair);
	}
	walk->queue(walk->arg, &queue);
}

#ifdef OPI_OBSERVE_H
static void
opi_nvmf_queues_go_on(void *ctx)
{
	struct spdk_io_channel_iter *i = ctx;
	const struct opi_nvmf_walk *walk = spdk_io_channel_iter_get_ctx(i);
	struct spdk_io_channel *channel = spdk_io_channel_iter_get_channel(i);
	struct spdk_nvmf_poll_group *group = spdk_io_channel_get_ctx(channel);
	struct spdk_nvmf_qpair *qpair = group->walk_next;

	for (int told = 0; qpair != NULL && told < OPI_QUEUES_AT_ONCE; told++) {
		opi_nvmf_tell_queue(walk, qpair);
		qpair = TAILQ_NEXT(qpair, link);
	}
	/* If that queue is destroyed meanwhile, SPDK advances walk_next to its successor (spdk/changes). */
	group->walk_next = qpair;
	if (qpair != NULL) {
		spdk_thread_send_msg(spdk_get_thread(), opi_nvmf_queues_go_on, i);
		return;
	}
	spdk_for_each_channel_continue(i, 0);
	spdk_put_io_channel(channel);
}

static void
opi_nvmf_queues_of_group(struct spdk_io_channel_iter *i)
{
	struct spdk_io_channel *channel = spdk_io_channel_iter_get_channel(i);
	struct spdk_nvmf_poll_group *group = spdk_io_channel_get_ctx(channel);

	/* This channel reference keeps the poll group alive between the steps; dropped after the last one. */
	if (spdk_get_io_channel(spdk_io_channel_iter_get_io_device(i)) == NULL) {
		spdk_for_each_channel_continue(i, -ENOMEM);
		return;
	}
	opi_nvmf_tell_group(spdk_io_channel_iter_get_ctx(i), group);
	group->walk_next = TAILQ_FIRST(&group->qpairs);
	opi_nvmf_queues_go_on(i);
}
#else
static void
opi_nvmf_queues_of_group(struct spdk_io_channel_iter *i)
{
	struct spdk_io_channel *channel = spdk_io_channel_iter_get_channel(i);
	struct spdk_nvmf_poll_group *group = spdk_io_channel_get_ctx(channel);
	struct spdk_nvmf_qpair *qpair;

	opi_nvmf_tell_group(spdk_io_channel_iter_get_ctx(i), group);
	TAILQ_FOREACH(qpair, &group->qpairs, link) {
		opi_nvmf_tell_queue(spdk_io_channel_iter_get_ctx(i), qpair);
	}
	spdk_for_each_channel_continue(i, 0);
}
#endif

static void
opi_nvmf_queues_done(struct spdk_io_channel_iter *i, int status)
{
	struct opi_nvmf_walk *walk = spdk_io_channel_iter_get_ctx(i);

	walk->done(walk->arg, status);
	free(walk);
}

void
opi_nvmf_for_each_queue(struct spdk_nvmf_tgt *tgt, const struct opi_nvmf_walk *walk)
{
	struct opi_nvmf_walk *copy = calloc(1, sizeof(*copy));

	if (copy == NULL) {
		walk->done(walk->arg, -ENOMEM);
		return;
	}
	*copy = *walk;
	spdk_for_each_channel(tgt, opi_nvmf_queues_of_group, copy, opi_nvmf_queues_done);
}

struct opi_nvmf_disconnect {
	const struct spdk_nvmf_subsystem	*subsystem;
	char					*hostnqn;
	int32_t					cntlid;
	bool					found;
	void					(*done)(void *arg, int status);
	void					*arg;
};

static bool
opi_nvmf_is_meant(const struct opi_nvmf_disconnect *walk, struct spdk_nvmf_qpair *qpair)
{
	const char *hostnqn;

	if (qpair->ctrlr == NULL || opi_nvmf_is_guest(qpair) ||
	    spdk_nvmf_ctrlr_get_subsystem(qpair->ctrlr) != walk->subsystem ||
	    (walk->cntlid >= 0 && spdk_nvmf_ctrlr_get_id(qpair->ctrlr) != walk->cntlid)) {
		return false;
	}
	if (walk->hostnqn == NULL) {
		return true;
	}
	hostnqn = opi_nvmf_hostnqn(qpair->ctrlr);
	return hostnqn != NULL && strcmp(hostnqn, walk->hostnqn) == 0;
}

static void
opi_nvmf_disconnect_group(struct spdk_io_channel_iter *i)
{
	struct opi_nvmf_disconnect *walk = spdk_io_channel_iter_get_ctx(i);
	struct spdk_io_channel *channel = spdk_io_channel_iter_get_channel(i);
	struct spdk_nvmf_poll_group *group = spdk_io_channel_get_ctx(channel);
	struct spdk_nvmf_qpair *qpair, *next;

	TAILQ_FOREACH_SAFE(qpair, &group->qpairs, link, next) {
		if (opi_nvmf_is_meant(walk, qpair)) {
			walk->found = true;
			spdk_nvmf_qpair_disconnect(qpair);
		}
	}
	spdk_for_each_channel_continue(i, 0);
}

static void
opi_nvmf_disconnected(struct spdk_io_channel_iter *i, int status)
{
	struct opi_nvmf_disconnect *walk = spdk_io_channel_iter_get_ctx(i);

	walk->done(walk->arg, status == 0 && !walk->found ? -ENOENT : status);
	free(walk->hostnqn);
	free(walk);
}

void
opi_nvmf_disconnect_hosts(struct spdk_nvmf_tgt *tgt, struct spdk_nvmf_subsystem *subsystem,
			  const char *hostnqn, int32_t cntlid,
			  void (*done)(void *arg, int status), void *arg)
{
	struct opi_nvmf_disconnect *walk = calloc(1, sizeof(*walk));
	char *copy = hostnqn == NULL ? NULL : strdup(hostnqn);

	if (walk == NULL || (hostnqn != NULL && copy == NULL)) {
		free(walk);
		free(copy);
		done(arg, -ENOMEM);
		return;
	}
	*walk = (struct opi_nvmf_disconnect) {
		.subsystem = subsystem, .hostnqn = copy, .cntlid = cntlid, .done = done, .arg = arg,
	};
	spdk_for_each_channel(tgt, opi_nvmf_disconnect_group, walk, opi_nvmf_disconnected);
}
