/* The door NVMe/TCP as target: hooks of its gate (spdk/gate/src/nvme_tcp_target), and its bounds. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* From accept to a Connect that has succeeded. */
#define OPI_NVME_TCP_ADMISSION_SECONDS 10

/* How often that is looked at. */
#define OPI_NVME_TCP_ADMISSION_PERIOD_US 500000

/* While a connection waits for its turn: how often that is looked at. Turns are 100 ms apart, or more. */
#define OPI_NVME_TCP_TURNS_PERIOD_US 20000

/* Connections for which no Connect has succeeded, or one to the discovery service alone, of all poll groups (one
 * a reactor): in all, and from one address. The next takes the place of the oldest of its group. A host of 128
 * cores opens 128 before its first Connect. Addresses are counted by a hash, in so many slots.
 */
#define OPI_NVME_TCP_UNADMITTED_MAX 1024
#define OPI_NVME_TCP_UNADMITTED_PER_ADDRESS 256
#define OPI_NVME_TCP_ADDRESS_SLOTS 4096

/* A connection to the discovery service, which answers any host. Requests beside the one for Connect: four that
 * wait for events, as many as the target takes, and two for other commands; further commands are read when one of
 * these is free. How long it may send no command after its first one: a host that stays connected sends its Keep
 * Alive sooner. And the part of a host's share of the buffers that all these connections have together.
 */
#define OPI_NVME_TCP_DISCOVERY_REQUESTS 6
#define OPI_NVME_TCP_DISCOVERY_SECONDS 300
#define OPI_NVME_TCP_DISCOVERY_SHARE 8

/* How long a command waits for its host: for the data of an R2T or inside its capsule, for the second of a
 * fused pair, or until its answer is taken off the socket. Then the connection ends. The short limit holds
 * while commands of any host wait for buffers of the pool, and for the host alone whose commands wait for its
 * share of them. A look each period.
 */
#define OPI_NVME_TCP_STALL_SECONDS 30
#define OPI_NVME_TCP_STALL_SHORT_SECONDS 5
#define OPI_NVME_TCP_STALL_PERIOD_US 500000

/* Bytes of an authentication message: the most that AUTH_RECV gets, whatever length it allocates. */
#define OPI_NVME_TCP_AUTH_MESSAGE_MAX 4096u

enum opi_nvme_tcp_phase {
	OPI_NVME_TCP_NEW = 0,
	OPI_NVME_TCP_UNADMITTED = 1,
	OPI_NVME_TCP_CONNECTED = 2,
	OPI_NVME_TCP_CLOSED = 3,
	OPI_NVME_TCP_AUTHENTICATING = 4,
	OPI_NVME_TCP_DISCOVERING = 5,
};

struct opi_nvme_tcp_connection {
	uint32_t in_capsule_max;
	uint32_t transfer_max;
	uint8_t phase;
	uint8_t cpda;
	bool is_admin;
	bool header_digest;
	bool data_digest;
};

struct opi_nvme_tcp_expected {
	uint32_t next;
	uint32_t length;
	uint16_t cid;
	bool asked;
};

/* Whether a host with `held` of the `all` queues of hosts may have another one, which takes so many bytes of SPDK's
 * memory. Asked at Connect and when the queue is admitted. */
bool __attribute__((weak))
opi_gate_nvme_tcp_queue(uint32_t held, uint32_t all, uint64_t bytes);

/* Each gives 0, or a fatal error status in bits 0 to 7 and the field's offset in bits 8 to 15. */

/* The first 8 bytes of a PDU. */
uint32_t __attribute__((weak))
opi_gate_nvme_tcp_header(const struct opi_nvme_tcp_connection *connection, const uint8_t *header);

/* The 64 bytes of a command with `inside` bytes of data in its capsule. */
uint32_t __attribute__((weak))
opi_gate_nvme_tcp_capsule(const struct opi_nvme_tcp_connection *connection, const uint8_t *command,
			  uint32_t inside);

/* The 24 bytes of an H2CData's header. */
uint32_t __attribute__((weak))
opi_gate_nvme_tcp_h2c_data(const struct opi_nvme_tcp_connection *connection,
			   const struct opi_nvme_tcp_expected *expected, const uint8_t *header);
