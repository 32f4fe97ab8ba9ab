/* What SPDK's NVMe driver asks before it believes a peer (spdk/src/hooks/initiator.rs). Weak: SPDK's own
 * programs link without. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct spdk_nvme_transport_id;

/* A command that the peer has, and how far its data is. */
struct opi_initiator_command {
	uint64_t	requested;
	uint64_t	received;
	uint32_t	size;
	uint8_t		opcode;
	/* The opcode, or the type of a Fabrics command: its two lowest bits are the way of the data. */
	uint8_t		transfer;
	bool		admin;
	bool		in_capsule;
	bool		r2t_waits;
	bool		ended;
};

/* NULL, or why the PDU is refused; then *fes is for the TermReq. */
const char *__attribute__((weak)) opi_initiator_header(uint8_t type, uint8_t flags, uint8_t hlen,
		uint8_t pdo, uint32_t plen, bool hdgst, bool ddgst, uint8_t *fes);
const char *__attribute__((weak)) opi_initiator_ic_resp(uint16_t pfv, uint8_t cpda, uint32_t maxh2cdata,
		bool hdgst, bool ddgst, bool asked_hdgst, bool asked_ddgst, uint8_t *fes);
const char *__attribute__((weak)) opi_initiator_r2t(const struct opi_initiator_command *command,
		uint32_t offset, uint32_t length, uint8_t *fes);
const char *__attribute__((weak)) opi_initiator_c2h_data(const struct opi_initiator_command *command,
		uint32_t offset, uint32_t length, uint8_t flags, uint32_t room, uint8_t *fes);
const char *__attribute__((weak)) opi_initiator_response(const struct opi_initiator_command *command,
		bool success, uint8_t *fes);

/* NULL, or why the 4096 bytes are refused; they are made sane. */
const char *__attribute__((weak)) opi_initiator_identify_ctrlr(void *data, uint32_t page_shift, bool lists);
const char *__attribute__((weak)) opi_initiator_identify_ns(void *data, uint32_t max_transfer);

/* NULL, or why the list of active namespaces is refused. *next: 0 if it has ended, else the last of them. */
const char *__attribute__((weak)) opi_initiator_active_list(const uint32_t *list, uint32_t entries,
		uint32_t highest, uint32_t *next);

const char *__attribute__((weak)) opi_initiator_smallest_page(uint32_t mpsmin);

/* The keep alive time to use, in ms. */
uint32_t __attribute__((weak)) opi_initiator_keep_alive(uint32_t answered_ms, uint32_t wanted_ms);

/* Why a queue of a controller could not be connected: errno of its socket, a status of Connect, or what SPDK
 * found. Called on the queue's thread; source is the address to connect from, empty for any.
 */
void __attribute__((weak)) opi_initiator_unreachable(const struct spdk_nvme_transport_id *trid,
		const char *source, const char *hostnqn, int error);
void __attribute__((weak)) opi_initiator_connect_refused(const struct spdk_nvme_transport_id *trid,
		const char *source, const char *hostnqn, uint8_t sct, uint8_t sc);
void __attribute__((weak)) opi_initiator_connect_failed(const struct spdk_nvme_transport_id *trid,
		const char *source, const char *hostnqn, const char *reason);
/* Why DH-HMAC-CHAP has failed: a reason of the peer's (NULL for one that there is not), or what SPDK found. */
void __attribute__((weak)) opi_initiator_auth_failed(const struct spdk_nvme_transport_id *trid,
		const char *source, const char *hostnqn, bool by_peer, const char *reason);
/* In which state it was then; NULL where its connection has ended. */
void __attribute__((weak)) opi_initiator_stuck(const struct spdk_nvme_transport_id *trid,
		const char *source, const char *hostnqn, const char *state);
/* It is ready: what failed before is past. Called on the thread of its admin queue. */
void __attribute__((weak)) opi_initiator_ready(const struct spdk_nvme_transport_id *trid,
		const char *source, const char *hostnqn);

struct spdk_nvme_ctrlr;

/* Whether its connection was, or is to be, authenticated: because the peer demands it, or for a key of the peer's. */
bool opi_nvme_ctrlr_is_authenticated(struct spdk_nvme_ctrlr *ctrlr);
