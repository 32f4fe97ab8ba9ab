/* NVMe-oF target calls whose options are structs with many fields. */

#include <spdk/stdinc.h>
#include <spdk/json.h>
#include <spdk/keyring.h>
#include <spdk/nvmf.h>
#include <spdk/nvmf_spec.h>
#include <spdk/nvmf_transport.h>
#include <spdk/sock.h>
#include <spdk/util.h>

#include "shim.h"

/* Weak: part of spdk/changes, absent from unpatched SPDK. */
int __attribute__((weak)) opi_nvmf_set_old_keys(struct spdk_nvmf_subsystem *subsystem,
		const char *hostnqn, struct spdk_key *key, struct spdk_key *ctrlr_key);
void __attribute__((weak)) opi_nvmf_tcp_keep_psks(struct spdk_nvmf_transport *transport,
		const struct spdk_nvmf_subsystem *subsystem, const char *hostnqn, int keep);
void __attribute__((weak)) opi_nvmf_refer(struct spdk_nvmf_tgt *tgt,
		const struct spdk_nvme_transport_id *trid);

int
opi_nvmf_transport_create(const char *name, const struct opi_nvmf_sizes *sizes,
			  spdk_nvmf_transport_create_done_cb done, void *arg)
{
	struct spdk_nvmf_transport_opts opts;

	if (!spdk_nvmf_transport_opts_init(name, &opts, sizeof(opts))) {
		return -ENODEV;
	}
	/* Neither the data that a vendor-specific command transfers nor its response can be validated. */
	opts.disable_command_passthru = true;
	if (sizes != NULL) {
		opts.max_queue_depth = sizes->queue_depth;
		opts.in_capsule_data_size = sizes->in_capsule;
		opts.io_unit_size = sizes->io_unit;
		opts.num_shared_buffers = sizes->buffers;
	}
	return spdk_nvmf_transport_create_async(name, &opts, done, arg);
}

int
opi_sock_disable_ssl_tickets(void)
{
#ifdef OPI_SOCK_HAS_SSL_TICKETS
	struct spdk_sock_impl_opts opts;
	size_t size = sizeof(opts);

	if (spdk_sock_impl_get_opts("ssl", &opts, &size) != 0) {
		return -errno;
	}
	opts.num_ssl_tickets = 0;
	return spdk_sock_impl_set_opts("ssl", &opts, size) == 0 ? 0 : -errno;
#else
	return -ENOTSUP;
#endif
}

int
opi_nvmf_listen(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid, bool secure)
{
	struct spdk_nvmf_listen_opts opts;

	spdk_nvmf_listen_opts_init(&opts, sizeof(opts));
	opts.secure_channel = secure;
	return spdk_nvmf_tgt_listen_ext(tgt, trid, &opts);
}

static struct spdk_nvmf_referral_opts
referral_to(const struct spdk_nvme_transport_id *trid)
{
	struct spdk_nvmf_referral_opts opts = {};

	opts.size = sizeof(opts);
	opts.trid = *trid;
	opts.allow_any_host = true;
	return opts;
}

int
opi_nvmf_add_referral(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid)
{
	struct spdk_nvmf_referral_opts opts = referral_to(trid);
	int rc = spdk_nvmf_tgt_add_referral(tgt, &opts);

	if (rc == 0 && opi_nvmf_refer != NULL) {
		opi_nvmf_refer(tgt, trid);
	}
	return rc;
}

int
opi_nvmf_remove_referral(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid)
{
	struct spdk_nvmf_referral_opts opts = referral_to(trid);

	return spdk_nvmf_tgt_remove_referral(tgt, &opts);
}

void
opi_nvmf_add_listener(struct spdk_nvmf_subsystem *subsystem,
		      const struct spdk_nvme_transport_id *trid, bool secure,
		      void (*done)(void *arg, int status), void *arg)
{
	struct spdk_nvmf_listener_opts opts;

	spdk_nvmf_subsystem_listener_opts_init(&opts, sizeof(opts));
	opts.secure_channel = secure;
	spdk_nvmf_subsystem_add_listener_ext(subsystem, trid, done, arg, &opts);
}

uint32_t
opi_nvmf_add_ns(struct spdk_nvmf_subsystem *subsystem, const char *bdev_name, uint32_t nsid,
		const uint8_t uuid[16], const uint8_t nguid[16], const uint8_t eui64[8],
		const char *kept, bool hidden)
{
	struct spdk_nvmf_ns_opts opts;

	spdk_nvmf_ns_opts_get_defaults(&opts, sizeof(opts));
	opts.nsid = nsid;
	opts.no_auto_visible = hidden;
	memcpy(&opts.uuid, uuid, sizeof(opts.uuid));
	memcpy(opts.nguid, nguid, sizeof(opts.nguid));
	memcpy(opts.eui64, eui64, sizeof(opts.eui64));
	return spdk_nvmf_subsystem_add_ns_ext(subsystem, bdev_name, &opts, sizeof(opts), kept);
}

/* Defined in nvmf_tgt.c (module/event): the configuration that the target is created from. Only the first member
 * is accessed. */
struct spdk_nvmf_tgt_conf {
	struct spdk_nvmf_target_opts opts;
};
extern struct spdk_nvmf_tgt_conf g_spdk_nvmf_tgt_conf;

void
opi_nvmf_accept_dhchap(const struct opi_dhchap_accepted *accepted)
{
	g_spdk_nvmf_tgt_conf.opts.dhchap_digests = accepted->hashes;
	g_spdk_nvmf_tgt_conf.opts.dhchap_dhgroups = accepted->groups;
}

/* A transport parses its part of a host's options from JSON values: {"psk": name}, plus "first": true if the host
 * has keys already. */
#define HOST_PARAMS 6

static void
host_params(struct spdk_json_val params[HOST_PARAMS], const char *psk_name, bool first)
{
	static char psk_key[] = "psk", first_key[] = "first", yes[] = "true";

	params[0] = (struct spdk_json_val) {
		.type = SPDK_JSON_VAL_OBJECT_BEGIN, .len = first ? 4 : 2
	};
	params[1] = (struct spdk_json_val) {
		.type = SPDK_JSON_VAL_NAME, .start = psk_key, .len = sizeof(psk_key) - 1
	};
	params[2] = (struct spdk_json_val) {
		.type = SPDK_JSON_VAL_STRING, .start = (void *)psk_name, .len = strlen(psk_name)
	};
	params[3] = (struct spdk_json_val) { .type = SPDK_JSON_VAL_OBJECT_END };
	if (first) {
		params[3] = (struct spdk_json_val) {
			.type = SPDK_JSON_VAL_NAME, .start = first_key, .len = sizeof(first_key) - 1
		};
		params[4] = (struct spdk_json_val) {
			.type = SPDK_JSON_VAL_TRUE, .start = yes, .len = sizeof(yes) - 1
		};
		params[5] = (struct spdk_json_val) { .type = SPDK_JSON_VAL_OBJECT_END };
	}
}

/* Takes a reference to the named key; NULL for a NULL name. */
static int
get_key(const char *name, struct spdk_key **key)
{
	*key = NULL;
	if (name == NULL) {
		return 0;
	}
	*key = spdk_keyring_get_key(name);
	return *key != NULL ? 0 : -ENOKEY;
}

static bool
has_old_keys(const struct opi_nvmf_host_keys *keys)
{
	return keys->old_psk != NULL || keys->old_dhchap != NULL || keys->old_dhchap_ctrlr != NULL;
}

static bool
takes_old_keys(void)
{
	return opi_nvmf_set_old_keys != NULL && opi_nvmf_tcp_keep_psks != NULL;
}

int
opi_nvmf_add_host(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
		  const struct opi_nvmf_host_keys *keys)
{
	struct spdk_json_val params[HOST_PARAMS];
	struct spdk_nvmf_host_opts opts = {};
	int rc;

	if (has_old_keys(keys) && !takes_old_keys()) {
		return -ENOTSUP;
	}
	opts.size = SPDK_SIZEOF(&opts, dhchap_ctrlr_key);
	if (keys->psk != NULL) {
		host_params(params, keys->psk, false);
		opts.params = params;
	}
	rc = get_key(keys->dhchap, &opts.dhchap_key);
	if (rc == 0) {
		rc = get_key(keys->dhchap_ctrlr, &opts.dhchap_ctrlr_key);
	}
	if (rc == 0) {
		rc = spdk_nvmf_subsystem_add_host_ext(subsystem, hostnqn, &opts);
	}
	spdk_keyring_put_key(opts.dhchap_key);
	spdk_keyring_put_key(opts.dhchap_ctrlr_key);
	if (rc == 0 && has_old_keys(keys)) {
		rc = opi_nvmf_set_host_keys(subsystem, hostnqn, keys, keys);
		if (rc != 0) {
			spdk_nvmf_subsystem_remove_host(subsystem, hostnqn);
		}
	}
	return rc;
}

static int
add_psk(struct spdk_nvmf_transport *transport, struct spdk_nvmf_subsystem *subsystem,
	const char *hostnqn, const char *psk_name)
{
	struct spdk_json_val params[HOST_PARAMS];

	host_params(params, psk_name, takes_old_keys());
	return transport->ops->subsystem_add_host(transport, subsystem, hostnqn, params);
}

/* Replaces a host's PSKs in all transports, or removes them. The host stays admitted and its open connections
 * continue, since PSKs are used in the handshake only. With our changes to SPDK a PSK that stays valid is never
 * absent meanwhile. */
static int
set_psk(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
	const struct opi_nvmf_host_keys *keys)
{
	struct spdk_nvmf_transport *transport;
	int rc = 0;

	for (transport = spdk_nvmf_transport_get_first(spdk_nvmf_get_first_tgt()); transport != NULL;
	     transport = spdk_nvmf_transport_get_next(transport)) {
		if (transport->ops->subsystem_remove_host == NULL ||
		    transport->ops->subsystem_add_host == NULL) {
			continue;
		}
		if (keys->psk == NULL || !takes_old_keys()) {
			transport->ops->subsystem_remove_host(transport, subsystem, hostnqn);
		}
		if (keys->psk == NULL) {
			continue;
		}
		/* The PSK that is added last is the first to be looked up, so the old one goes in first. */
		if (keys->old_psk != NULL) {
			rc = add_psk(transport, subsystem, hostnqn, keys->old_psk);
		}
		if (rc == 0) {
			rc = add_psk(transport, subsystem, hostnqn, keys->psk);
		}
		if (rc != 0) {
			return rc;
		}
		if (takes_old_keys()) {
			opi_nvmf_tcp_keep_psks(transport, subsystem, hostnqn, keys->old_psk != NULL ? 2 : 1);
		}
	}
	return 0;
}

static int
set_dhchap(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
	   const struct opi_nvmf_host_keys *keys)
{
	struct spdk_nvmf_subsystem_key_opts opts = {};
	struct spdk_key *old = NULL, *old_ctrlr = NULL;
	int rc;

	opts.size = SPDK_SIZEOF(&opts, dhchap_ctrlr_key);
	rc = get_key(keys->dhchap, &opts.dhchap_key);
	if (rc == 0) {
		rc = get_key(keys->dhchap_ctrlr, &opts.dhchap_ctrlr_key);
	}
	if (rc == 0) {
		rc = get_key(keys->old_dhchap, &old);
	}
	if (rc == 0) {
		rc = get_key(keys->old_dhchap_ctrlr, &old_ctrlr);
	}
	/* Old keys first: a key that stays valid is then never absent. */
	if (rc == 0 && takes_old_keys()) {
		rc = opi_nvmf_set_old_keys(subsystem, hostnqn, old, old_ctrlr);
	}
	if (rc == 0) {
		rc = spdk_nvmf_subsystem_set_keys(subsystem, hostnqn, &opts);
	}
	spdk_keyring_put_key(opts.dhchap_key);
	spdk_keyring_put_key(opts.dhchap_ctrlr_key);
	spdk_keyring_put_key(old);
	spdk_keyring_put_key(old_ctrlr);
	return rc;
}

void
opi_nvmf_end_old_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn)
{
	struct spdk_nvmf_transport *transport;

	if (!takes_old_keys()) {
		return;
	}
	for (transport = spdk_nvmf_transport_get_first(spdk_nvmf_get_first_tgt()); transport != NULL;
	     transport = spdk_nvmf_transport_get_next(transport)) {
		/* The current PSK is the first. */
		opi_nvmf_tcp_keep_psks(transport, subsystem, hostnqn, 1);
	}
	/* Fails only with ENOENT, for a host that was removed through SPDK's own JSON-RPC; ignored. */
	opi_nvmf_set_old_keys(subsystem, hostnqn, NULL, NULL);
}

int
opi_nvmf_set_host_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
		       const struct opi_nvmf_host_keys *keys, const struct opi_nvmf_host_keys *before)
{
	bool has_psk = keys->psk != NULL || before->psk != NULL;
	bool has_dhchap = keys->dhchap != NULL || before->dhchap != NULL;
	int rc = 0;

	if (has_old_keys(keys) && !takes_old_keys()) {
		return -ENOTSUP;
	}
	if (has_psk) {
		rc = set_psk(subsystem, hostnqn, keys);
	}
	if (rc == 0 && has_dhchap) {
		rc = set_dhchap(subsystem, hostnqn, keys);
	}
	if (rc != 0) {
		if (has_psk) {
			set_psk(subsystem, hostnqn, before);
		}
		if (has_dhchap) {
			set_dhchap(subsystem, hostnqn, before);
		}
	}
	return rc;
}
