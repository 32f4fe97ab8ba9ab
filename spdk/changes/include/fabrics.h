/* Hooks of the door NVMe over Fabrics, behind the transport (spdk/gate/src/fabrics), and what the
 * changes of that door share. Implemented in spdk/src/hooks/fabrics.rs. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct spdk_key;
struct spdk_nvme_cmd;
struct spdk_nvme_transport_id;
struct spdk_nvmf_ctrlr;
struct spdk_nvmf_poll_group;
struct spdk_nvmf_qpair;
struct spdk_nvmf_reservation_info;
struct spdk_nvmf_subsystem;
struct spdk_nvmf_tgt;
struct spdk_nvmf_transport;
struct spdk_uuid;

/* The longest identity of a pre-shared key, without its terminator. */
#define OPI_PSK_IDENTITY_MAX 521

enum opi_connect_fault {
	OPI_CONNECT_RIGHT = 0,
	OPI_CONNECT_LENGTH,
	OPI_CONNECT_HOSTID,
	OPI_CONNECT_SUBNQN,
	OPI_CONNECT_HOSTNQN,
};

/* Which field of a Connect command's data is at fault. */
int __attribute__((weak)) opi_gate_connect(const void *data, size_t length);

/* Whether bytes of a TLS hello may be taken for the identity of a pre-shared key. */
bool __attribute__((weak)) opi_gate_psk_identity(const void *identity, size_t length);

/* Whether an identity is that of this host's key for this subsystem. */
bool __attribute__((weak)) opi_gate_psk_names(const char *identity, const char *hostnqn,
		const char *subnqn);

/* Whether a command's data is as long as what the command moves. An admin command has no blocks. */
bool __attribute__((weak)) opi_gate_data_length(const void *cmd, bool admin, uint32_t block_size,
		uint32_t length);

/* A host's admin queue has connected, and has authenticated where it has to; on its thread. */
void __attribute__((weak)) opi_host_connected(struct spdk_nvmf_ctrlr *ctrlr,
		struct spdk_nvmf_qpair *qpair);

/* A controller is about to go with its last queue, on the subsystem's thread. */
void __attribute__((weak)) opi_host_disconnected(struct spdk_nvmf_ctrlr *ctrlr);

/* Why a host is refused; spdk/src/nvmf/refusals.rs has the same. */
enum opi_refusal {
	OPI_REFUSED_NOT_ADMITTED = 0,
	OPI_REFUSED_OTHER_KEY,
	OPI_REFUSED_TLS_IDENTITY,
	OPI_REFUSED_TLS_KEY,
	OPI_REFUSED_DHCHAP,
	OPI_REFUSED_CONTROLLER,
	OPI_REFUSED_UNKNOWN_SUBSYSTEM,
	OPI_REFUSED_OTHER_LISTENER,
	OPI_REFUSED_TOO_MANY_QUEUES,
};

/* A host at this address was refused. All texts are terminated. */
void __attribute__((weak)) opi_host_refused(int why, const char *address, const char *hostnqn,
		const char *subnqn);

/* The same in a TLS handshake, with the identity of the pre-shared key that it named. */
void __attribute__((weak)) opi_tls_refused(int why, const char *address, const char *identity);

/* A host at this address has proved by DH-HMAC-CHAP that it is `hostnqn`; NULL: by TLS that it is one that the
 * target knows. */
void __attribute__((weak)) opi_host_known(const char *address, const char *hostnqn);

/* The turn of a connection never comes. */
#define OPI_NO_TURN UINT64_MAX

/* How many milliseconds the challenge of a host waits for its turn; `hostnqn` NULL: a new connection to a TLS
 * listener, before it is read from. */
uint64_t __attribute__((weak)) opi_host_wait(const char *address, const char *hostnqn);

/* lib/nvmf/ctrlr.c: tell of the host at the other end, over a network. */
void nvmf_qpair_refused(struct spdk_nvmf_qpair *qpair, int why, const char *hostnqn,
			const char *subnqn);
void nvmf_qpair_known(struct spdk_nvmf_qpair *qpair, const char *hostnqn);

/* lib/nvmf/ctrlr.c: how long the host at the other end, which says that it is `hostnqn`, waits for its turn, ms. */
uint64_t nvmf_qpair_wait(struct spdk_nvmf_qpair *qpair, const char *hostnqn);

/* lib/nvmf/subsystem.c: the keys of DH-HMAC-CHAP that a host may still use beside its own, NULL for none. */
int opi_nvmf_set_old_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
			  struct spdk_key *key, struct spdk_key *ctrlr_key);

/* lib/nvmf/nvmf.c: has a referral tell of a discovery service, whatever its NQN. On the app thread. */
void opi_nvmf_refer(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid);

/* lib/nvmf/tcp.c: forgets all pre-shared keys of a host but so many, those that were added last. */
void opi_nvmf_tcp_keep_psks(struct spdk_nvmf_transport *transport,
			    const struct spdk_nvmf_subsystem *subsystem, const char *hostnqn, int keep);

/* Where the parts of a TLS hello are that show which key its sender has. */
struct opi_tls_binder {
	/* How many bytes of the hello the binder is made of. */
	size_t	covered;
	/* Offset and length of the binder. */
	size_t	at;
	size_t	length;
};

/* Finds the binder of an identity in a ClientHello with its header. */
bool __attribute__((weak)) opi_gate_tls_binder(const void *hello, size_t length, const char *identity,
		struct opi_tls_binder *binder);

/* module/sock/posix/posix.c: whether the hello that this thread is answering was made with a key. The answer
 * to a hello that was asked for once more is no: then the first key counts. */
bool __attribute__((weak)) opi_tls_hello_has_key(const char *identity, const char *cipher,
		const uint8_t *key, size_t length);

/* How many messages of TLS itself a connection takes in without data between them: a handshake has up to 8. */
#define OPI_TLS_MESSAGES_MAX 16
/* In how many records these may come. */
#define OPI_TLS_RECORDS_MAX 64

/* How many identities of pre-shared keys are looked up for one hello. A host has one for each hash. */
#define OPI_TLS_IDENTITIES_MAX 4

/* Between two messages of a host that authenticates and is not let in yet. */
#define OPI_AUTH_SECONDS 10

/* lib/nvmf/auth.c: the host ends the connection, maybe before it has proved who it is. */
void nvmf_qpair_auth_given_up(struct spdk_nvmf_qpair *qpair);

/* lib/nvmf/auth.c: the connection gives way to another one. It counts as a failure once the exchange has cost its
 * challenge. */
void nvmf_qpair_auth_displaced(struct spdk_nvmf_qpair *qpair);

/* lib/nvmf/auth.c: whether a command of the queue waits for its turn. */
bool nvmf_qpair_auth_waits(struct spdk_nvmf_qpair *qpair);

/* lib/nvmf/auth.c: completes a command that waits for its turn. The queue may be gone after it. */
void nvmf_qpair_auth_end_wait(struct spdk_nvmf_qpair *qpair);

/* What a namespace has in place of the name of a file begins so if the program keeps its reservations. The
 * four hooks are on the thread of the subsystem, which is the app thread. */
#define OPI_RESERVATION_KEPT "opi:"

/* What is kept of the reservations of a namespace of this volume: nothing, if of another one. */
int __attribute__((weak)) opi_reservation_load(const char *name, const struct spdk_uuid *bdev,
		struct spdk_nvmf_reservation_info *info);

/* Begins to keep them. */
int __attribute__((weak)) opi_reservation_save(const char *name,
		const struct spdk_nvmf_reservation_info *info);

/* Whether what is kept is not what the namespace has. */
bool __attribute__((weak)) opi_reservation_is_unsaved(const char *name);

/* Has `saved` called once what was begun has ended, or its time is up; false if nothing was begun. */
bool __attribute__((weak)) opi_reservation_wait(const char *name,
		void (*saved)(void *arg, int status), void *arg);

/* Of the SPDK_NVMF_MAX_NUM_REGISTRANTS places of a namespace's registrants, how many one host NQN may take, each with
 * another host ID. A host has one ID, and another one once it was installed anew. Its second and further ones also
 * leave a place for each other host of the subsystem's list that has none.
 */
#define OPI_REGISTRANTS_PER_HOST 4

static inline bool
opi_reservation_is_kept(const char *name)
{
	return opi_reservation_save != NULL && name != NULL &&
	       strncmp(name, OPI_RESERVATION_KEPT, sizeof(OPI_RESERVATION_KEPT) - 1) == 0;
}

/* Whether this host goes on seeing the namespace that gets its first list of hosts. On the thread of the subsystem,
 * within spdk_nvmf_subsystem_set_ns_visibility. */
bool __attribute__((weak)) opi_host_still_sees(const char *hostnqn);

/* lib/nvmf/ctrlr.c: who the host of a controller says that it is. The controller has it until its end. */
const char *nvmf_ctrlr_get_hostnqn(const struct spdk_nvmf_ctrlr *ctrlr);

/* lib/nvmf/ctrlr.c: completes a first fused command whose second will not come. */
void nvmf_qpair_abort_first_fused(struct spdk_nvmf_qpair *qpair);

/* lib/nvmf/nvmf.c: the same for all queues of a subsystem in a poll group. */
void nvmf_poll_group_abort_first_fused(struct spdk_nvmf_poll_group *group,
				       struct spdk_nvmf_subsystem *subsystem);

/* lib/nvmf/tcp.c: whether the host at the other end may call itself that to that subsystem. Over TLS it
 * is whom its key belongs to; without TLS it is nobody who has a key for the subsystem. */
bool nvmf_tcp_qpair_is_host(struct spdk_nvmf_qpair *qpair, const char *subnqn, const char *hostnqn);

/* lib/nvmf/tcp.c: whether the host of that name may have this connection as a further queue. */
bool nvmf_tcp_qpair_has_place(struct spdk_nvmf_qpair *qpair, const char *hostnqn);

/* lib/nvmf/tcp.c: whether a connection speaks TLS. */
bool nvmf_tcp_qpair_is_tls(struct spdk_nvmf_qpair *qpair);
