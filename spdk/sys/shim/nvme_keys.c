/* DH-HMAC-CHAP keys of remote NVMe controllers, and reauthentication of connections. */

#include <spdk/stdinc.h>
#include <spdk/keyring.h>
#include <spdk/nvme.h>
#include <spdk/util.h>

#include <bdev_nvme.h>

#if __has_include(<opi/initiator.h>)
#include <opi/initiator.h>
#endif

#include "shim.h"

static int
get_key(const char *name, struct spdk_key **key)
{
	*key = name != NULL ? spdk_keyring_get_key(name) : NULL;
	return name != NULL && *key == NULL ? -ENOKEY : 0;
}

int
opi_nvme_set_keys(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		  const char *key, const char *ctrlr_key)
{
	struct nvme_ctrlr *ctrlr = opi_nvme_connection(name, id, source);
	struct spdk_nvme_ctrlr_key_opts opts = {};
	int rc;

	if (ctrlr == NULL || ctrlr->destruct) {
		return -ENXIO;
	}
	opts.size = SPDK_SIZEOF(&opts, dhchap_ctrlr_key);
	rc = get_key(key, &opts.dhchap_key);
	if (rc == 0) {
		rc = get_key(ctrlr_key, &opts.dhchap_ctrlr_key);
	}
#if !__has_include(<opi/initiator.h>)
	/* Unpatched SPDK would compute its reply to a challenge from a NULL key. The old key stays in place
	 * instead: its data in the keyring has been wiped, so it cannot authenticate. */
	if (rc == 0 && opts.dhchap_key == NULL) {
		spdk_keyring_put_key(opts.dhchap_ctrlr_key);
		return 0;
	}
#endif
	if (rc == 0) {
		rc = spdk_nvme_ctrlr_set_keys(ctrlr->ctrlr, &opts);
	}
	if (rc != 0) {
		spdk_keyring_put_key(opts.dhchap_key);
		spdk_keyring_put_key(opts.dhchap_ctrlr_key);
		return rc;
	}
	/* The driver borrows the keys without a reference of its own; these references keep them alive. */
	spdk_keyring_put_key(ctrlr->dhchap_key);
	spdk_keyring_put_key(ctrlr->dhchap_ctrlr_key);
	ctrlr->dhchap_key = opts.dhchap_key;
	ctrlr->dhchap_ctrlr_key = opts.dhchap_ctrlr_key;
	return 0;
}

#if __has_include(<opi/initiator.h>)

struct opi_nvme_authenticating {
	struct nvme_ctrlr	*ctrlr;
	void			(*done)(void *arg, int status);
	void			*arg;
};

static void
end(struct opi_nvme_authenticating *authenticating, int status)
{
	authenticating->done(authenticating->arg, status);
	free(authenticating);
}

/* Maps the status of an exchange: a queue that could not send has lost its connection. */
static int
outcome(int status)
{
	return status == -ENXIO || status == -ENOTCONN ? -ECANCELED : status;
}

static void
on_queue(void *ctx, int status)
{
	nvme_ctrlr_for_each_channel_continue(ctx, outcome(status));
}

/* Whether a queue may just have been authenticated with the old keys. SPDK does not always report its end. */
static bool
is_connecting(struct nvme_ctrlr_channel *channel)
{
	struct spdk_nvme_qpair *qpair = channel->qpair->qpair;

	return channel->reset_iter != NULL || (qpair != NULL && !spdk_nvme_qpair_is_connected(qpair));
}

/* Returns 0 if the controller is connected, else -ENXIO (detached), -EBUSY (resetting) or -ENOTCONN (down). */
static int
check_connected(struct nvme_ctrlr *ctrlr)
{
	if (ctrlr->destruct) {
		return -ENXIO;
	}
	if (ctrlr->resetting) {
		return -EBUSY;
	}
	if (ctrlr->reconnect_is_delayed || ctrlr->disabled || spdk_nvme_ctrlr_is_failed(ctrlr->ctrlr)) {
		return -ENOTCONN;
	}
	/* The admin queue may have lost its connection, and its next poll is yet to start the reset. */
	if (spdk_nvme_ctrlr_get_admin_qp_failure_reason(ctrlr->ctrlr) != SPDK_NVME_QPAIR_FAILURE_NONE) {
		return -ENOTCONN;
	}
	return 0;
}

static void
authenticate_queue(struct nvme_ctrlr_channel_iter *i, struct nvme_ctrlr *ctrlr,
		   struct nvme_ctrlr_channel *channel, void *ctx)
{
	struct spdk_nvme_qpair *qpair = channel->qpair->qpair;
	int rc = 0;

	if (is_connecting(channel)) {
		rc = -EBUSY;
	} else if (qpair != NULL) {
		rc = spdk_nvme_qpair_authenticate(qpair, on_queue, i);
		if (rc == 0) {
			return;
		}
		rc = outcome(rc);
	}
	nvme_ctrlr_for_each_channel_continue(i, rc);
}

static void
on_queues(struct nvme_ctrlr *ctrlr, void *ctx, int status)
{
	/* A queue lost meanwhile is missing from the walk and has proved nothing: report the exchange as lost. */
	if (status == 0 && check_connected(ctrlr) != 0) {
		status = -ECANCELED;
	}
	end(ctx, status);
}

/* Lifetime: the controller exists while its admin queue is polled, and until a walk over its channels ends. */
static void
on_admin_queue(void *ctx, int status)
{
	struct opi_nvme_authenticating *authenticating = ctx;

	if (status != 0 || authenticating->ctrlr->destruct) {
		end(authenticating, outcome(status));
		return;
	}
	nvme_ctrlr_for_each_channel(authenticating->ctrlr, authenticate_queue, authenticating, on_queues);
}

static void
check_queue(struct nvme_ctrlr_channel_iter *i, struct nvme_ctrlr *ctrlr, struct nvme_ctrlr_channel *channel,
	    void *ctx)
{
	nvme_ctrlr_for_each_channel_continue(i, is_connecting(channel) ? -EBUSY : 0);
}

/* Starts the exchange only if no queue is connecting: otherwise it would have to be repeated. */
static void
on_checked(struct nvme_ctrlr *ctrlr, void *ctx, int status)
{
	if (status == 0) {
		status = check_connected(ctrlr);
	}
	if (status == 0) {
		status = outcome(spdk_nvme_ctrlr_authenticate(ctrlr->ctrlr, on_admin_queue, ctx));
	}
	if (status != 0) {
		end(ctx, status);
	}
}

int
opi_nvme_authenticate(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		      void (*done)(void *arg, int status), void *arg)
{
	struct nvme_ctrlr *ctrlr = opi_nvme_connection(name, id, source);
	struct opi_nvme_authenticating *authenticating;
	int rc;

	rc = ctrlr != NULL ? check_connected(ctrlr) : -ENXIO;
	if (rc != 0) {
		return rc;
	}
	if (!opi_nvme_ctrlr_is_authenticated(ctrlr->ctrlr)) {
		return -EOPNOTSUPP;
	}
	authenticating = calloc(1, sizeof(*authenticating));
	if (authenticating == NULL) {
		return -ENOMEM;
	}
	authenticating->ctrlr = ctrlr;
	authenticating->done = done;
	authenticating->arg = arg;
	nvme_ctrlr_for_each_channel(ctrlr, check_queue, authenticating, on_checked);
	return 0;
}

#else

/* Unpatched SPDK can reauthenticate neither a busy connection nor one whose authentication failed before: the
 * connection is reset instead. */
int
opi_nvme_authenticate(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		      void (*done)(void *arg, int status), void *arg)
{
	struct nvme_ctrlr *ctrlr = opi_nvme_connection(name, id, source);

	if (ctrlr != NULL && ctrlr->reconnect_is_delayed) {
		return -ENOTCONN;
	}
	return opi_nvme_reset(name, id, source, done, arg);
}

#endif
