/* The part of the bindings that needs C: variadic arguments, inline functions, private struct layouts, and
 * options whose struct differs between builds. Thin wrappers without policy. App thread only, except where noted. */
#ifndef OPI_SPDK_SHIM_H
#define OPI_SPDK_SHIM_H

#include <spdk/stdinc.h>
#include <spdk/bdev.h>
#include <spdk/module/bdev/nvme.h>
#include <spdk/nvmf.h>
#include <spdk/uuid.h>

/* log.c */

/* `text` is the formatted line without its newline, `length` bytes, not NUL-terminated. */
typedef void (*opi_log_line)(int level, const char *file, int line, const char *text, size_t length);

/* Returns the level at which a line from this place is logged; INT_MAX suppresses it before it is formatted. */
typedef int (*opi_log_admit)(int level, const char *file, int line, const char *func);

/* The file of DPDK's lines; their line number only tells them apart. */
#define OPI_LOG_DPDK "dpdk"

/* Configures the sink of SPDK's and DPDK's lines before SPDK starts, once. Lines with a level above `threshold`, or
 * not admitted, are not passed on, and SPDK's not even formatted. 0, or a negative errno. */
int opi_log_configure(opi_log_line sink, opi_log_admit admit, int threshold);

/* Changes the threshold. Any thread. */
void opi_log_set_threshold(int threshold);

/* An spdk_log_cb that formats the line and passes it to the sink. Any thread. */
void opi_log_sink(int level, const char *file, const int line, const char *func,
		  const char *format, va_list args);

/* bdev.c */

/* `metadata_size` bytes follow each block's data; 0 for none. */
int opi_bdev_malloc_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
			   uint32_t block_size, uint32_t metadata_size);
/* SPDK's (DPDK's) heap, in bytes: total, free, and the largest free piece. */
struct opi_memory {
	uint64_t bytes;
	uint64_t free;
	uint64_t largest_free;
};
void opi_memory_read(struct opi_memory *memory);
int opi_bdev_null_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
			 uint32_t block_size);
/* `block_size` 0 uses the file's own. */
int opi_bdev_aio_create(const char *name, const struct spdk_uuid *uuid, const char *filename,
			uint32_t block_size, bool readonly);
int opi_bdev_aio_rescan(const char *name);

/* Returns the name of the module that claims the bdev, or NULL. */
const char *opi_bdev_claimed_by(const struct spdk_bdev *bdev);
/* Returns -EBUSY if an open bdev would shrink. */
int opi_bdev_set_num_blocks(struct spdk_bdev *bdev, uint64_t num_blocks);
/* Always calls `done`, with 0 or a negative errno. */
void opi_bdev_unregister(struct spdk_bdev *bdev, void (*done)(void *arg, int status), void *arg);
/* `limits` is indexed by enum spdk_bdev_qos_rate_limit_type. */
void opi_bdev_set_qos_limits(struct spdk_bdev *bdev, uint64_t *limits,
			     void (*done)(void *arg, int status), void *arg);

/* Keys are hexadecimal. The bdev owns the accel key made from them. */
int opi_bdev_crypto_create(const char *name, const char *base, const char *hex_key,
			   const char *hex_key2);
/* Always calls `done`, with 0 or a negative errno. */
void opi_bdev_crypto_delete(const char *name, void (*done)(void *arg, int status), void *arg);

/* Latencies added to an I/O, in microseconds: to nearly all I/Os, and to one in a hundred (p99). */
struct opi_bdev_delays {
	uint64_t	avg_read_us;
	uint64_t	p99_read_us;
	uint64_t	avg_write_us;
	uint64_t	p99_write_us;
};

int opi_bdev_delay_create(const char *name, const char *base, const struct opi_bdev_delays *delays);
/* Applies to I/O that the base bdev completes from now on. */
int opi_bdev_delay_set(const char *name, const struct opi_bdev_delays *delays);
/* Always calls `done`, with 0 or a negative errno. */
void opi_bdev_delay_delete(const char *name, void (*done)(void *arg, int status), void *arg);

/* Registers a bdev `name` that supports no I/O and appears to be one of `module`. The crypto and delay modules
 * release a reserved name, and what they allocated for it, only when they delete a bdev of that name. */
int opi_bdev_stand_in(const char *module, const char *name);

/* nvmf.c */

struct opi_nvmf_sizes {
	/* Commands that a host may have outstanding in a queue, plus one. */
	uint16_t	queue_depth;
	/* Bytes of data in a command. */
	uint32_t	in_capsule;
	/* Bytes in each of the buffers that the data of a command is split into. */
	uint32_t	io_unit;
	/* Buffers of the pool for the transport's own caches. */
	uint32_t	buffers;
};

/* Creates a transport with SPDK's default options, but without passthrough of vendor-specific commands, and with these
 * sizes unless NULL. */
int opi_nvmf_transport_create(const char *name, const struct opi_nvmf_sizes *sizes,
			      spdk_nvmf_transport_create_done_cb done, void *arg);
/* Disables TLS session tickets on listeners: Linux hosts reject that record. -ENOTSUP if this build has no such
 * option. */
int opi_sock_disable_ssl_tickets(void);

int opi_nvmf_listen(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid, bool secure);

/* Adds a referral to another discovery service, visible to all hosts, or removes it. `trid` includes the
 * subsystem NQN. */
int opi_nvmf_add_referral(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid);
int opi_nvmf_remove_referral(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid);

void opi_nvmf_add_listener(struct spdk_nvmf_subsystem *subsystem,
			   const struct spdk_nvme_transport_id *trid, bool secure,
			   void (*done)(void *arg, int status), void *arg);

/* All-zero identifiers let SPDK choose. `kept` is the name under which reservations are persisted, or NULL. A
 * hidden namespace is visible only to hosts on its list. Returns the namespace ID, 0 on failure. */
uint32_t opi_nvmf_add_ns(struct spdk_nvmf_subsystem *subsystem, const char *bdev_name, uint32_t nsid,
			 const uint8_t uuid[16], const uint8_t nguid[16], const uint8_t eui64[8],
			 const char *kept, bool hidden);

/* DH-HMAC-CHAP: a bit for each hash and each DH group that is accepted, by their numbers in the exchange. */
struct opi_dhchap_accepted {
	uint32_t	hashes;
	uint32_t	groups;
};

/* Sets what hosts may use. Call before SPDK creates its target. */
void opi_nvmf_accept_dhchap(const struct opi_dhchap_accepted *accepted);

/* Names of keys in SPDK's keyring; NULL for none. */
struct opi_nvmf_host_keys {
	/* TLS PSK. */
	const char	*psk;
	/* DH-HMAC-CHAP: the host's key, and the controller's key (bidirectional authentication). */
	const char	*dhchap;
	const char	*dhchap_ctrlr;
	/* The previous keys, accepted beside the current ones. */
	const char	*old_psk;
	const char	*old_dhchap;
	const char	*old_dhchap_ctrlr;
};

/* Returns -ENOTSUP if SPDK cannot hold previous keys. */
int opi_nvmf_add_host(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
		      const struct opi_nvmf_host_keys *keys);
/* Replaces the keys of an admitted host; its connections stay. On failure the keys in `before` are restored
 * (rollback). */
int opi_nvmf_set_host_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
			   const struct opi_nvmf_host_keys *keys,
			   const struct opi_nvmf_host_keys *before);
/* Drops the previous keys of a host; the current ones alone remain. */
void opi_nvmf_end_old_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn);

/* hosts.c */

/* A queue of a connected host. */
struct opi_nvmf_queue {
	/* Identifies the controller; never dereferenced. NULL before the host has sent CONNECT: then only
	 * `is_guest` is set. */
	const void	*ctrlr;
	const char	*subnqn;
	/* NULL if SPDK does not expose it. */
	const char	*hostnqn;
	uint32_t	size;
	uint32_t	core;
	uint16_t	cntlid;
	uint16_t	qid;
	/* Completed I/O commands; 0 if SPDK does not count them. */
	uint64_t	completed_io;
	/* The host is a virtual machine, over vfio-user. */
	bool		is_guest;
	/* Address and port of the host, or the directory of the guest's socket. Admin queue only, else empty. */
	char		address[320];
};

/* Runs on the queue's thread. The queue must have a controller. */
void opi_nvmf_describe_queue(struct spdk_nvmf_qpair *qpair, struct opi_nvmf_queue *queue);

/* A poll group of the target: the queues that one SPDK thread serves. */
struct opi_nvmf_group {
	/* Identifies the group; never dereferenced. */
	const void	*group;
	/* Completed commands of its I/O queues, past ones included: Connect and failed commands count too. */
	uint64_t	completed_io;
	/* Core that runs its thread. */
	uint32_t	core;
};

struct opi_nvmf_walk {
	void	(*group)(void *arg, const struct opi_nvmf_group *group);
	void	(*queue)(void *arg, const struct opi_nvmf_queue *queue);
	void	(*done)(void *arg, int status);
	void	*arg;
};

/* Walks all poll groups and their queues. `group` and `queue` are called on the threads of the poll groups, one after
 * another; the strings are valid during the call. `done` is called last, on the calling thread. Each step is bounded to
 * some number of queues. Two concurrent walks would miss queues: they share the poll group's cursor. */
void opi_nvmf_for_each_queue(struct spdk_nvmf_tgt *tgt, const struct opi_nvmf_walk *walk);

/* Disconnects hosts that are connected to the subsystem over a network: those with `hostnqn` unless it is NULL,
 * and with `cntlid` unless it is negative. -ENOENT if there is none. */
void opi_nvmf_disconnect_hosts(struct spdk_nvmf_tgt *tgt, struct spdk_nvmf_subsystem *subsystem,
			       const char *hostnqn, int32_t cntlid,
			       void (*done)(void *arg, int status), void *arg);

/* keyring.c */

/* Copies the key. Returns -EEXIST if the name is in use. */
int opi_keyring_add(const char *name, const void *data, size_t length);
int opi_keyring_remove(const char *name);

/* nvme.c */

/* Timeouts that apply to all controllers. */
struct opi_nvme_limits {
	uint32_t	tcp_connect_ms;
	uint32_t	keep_alive_ms;
	/* Timeouts of I/O and admin commands, in microseconds; ignored by an SPDK without our changes. */
	uint64_t	io_us;
	uint64_t	admin_us;
	/* What peers may use. */
	struct opi_dhchap_accepted dhchap;
};

/* Sets the options of all controllers. Call before the first is attached. */
int opi_nvme_configure(const struct opi_nvme_limits *limits);

/* NULL strings and zero numbers select SPDK's defaults. */
struct opi_nvme_attach {
	const char				*name;
	const struct spdk_nvme_transport_id	*id;
	const char				*hostnqn;
	const char				*source_address;
	const char				*source_port;
	const char				*psk_name;
	const char				*dhchap_name;
	const char				*dhchap_ctrlr_name;
	uint32_t				num_io_queues;
	uint32_t				io_queue_size;
	/* Timeout of connecting, at first and at each reconnect. */
	uint32_t				timeout_ms;
	int32_t					ctrlr_loss_timeout_sec;
	uint32_t				reconnect_delay_sec;
	uint32_t				fast_io_fail_timeout_sec;
	bool					header_digest;
	bool					data_digest;
	bool					multipath;
};

/* Everything is copied. `done` is told of no bdevs: SPDK reads the names of some that are being removed. */
int opi_nvme_attach(const struct opi_nvme_attach *attach, spdk_bdev_nvme_create_cb done, void *arg);
/* A path is identified by its transport ID and its source address (empty if none was configured). opi_nvme_detach
 * and opi_nvme_reset return -ENXIO if there is no such path. */

/* Detaches one path; a NULL `id` is every path. */
int opi_nvme_detach(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		    spdk_bdev_nvme_delete_cb done, void *arg);
/* Reconnects the path. Returns -EBUSY during a reset or reconnect. */
int opi_nvme_reset(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		   void (*done)(void *arg, int status), void *arg);

/* Returns the connection of controller `name` that has the path, or NULL. */
struct nvme_ctrlr *opi_nvme_connection(const char *name, const struct spdk_nvme_transport_id *id,
				       const char *source);

/* nvme_keys.c; both functions return -ENXIO if there is no such path. */

/* Sets the connection's DH-HMAC-CHAP keys, by name in the keyring, for its next authentication; NULL for none. */
int opi_nvme_set_keys(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		      const char *key, const char *ctrlr_key);
/* Reauthenticates the connection of the path, queue by queue; the connection ends if that fails. `done` is called
 * on the calling thread unless an error is returned. Returned, or passed to `done`: -EBUSY while the connection or one of
 * its queues is being connected, -ENOTCONN while the connection is down, -EALREADY while it authenticates, -EOPNOTSUPP
 * if the peer does not demand authentication and has no key to prove itself with. Passed to `done`: -ECANCELED if the
 * connection has ended meanwhile. */
int opi_nvme_authenticate(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
			  void (*done)(void *arg, int status), void *arg);

/* Makes a reconnect attempt of the path that is in progress fail. */
void opi_nvme_end_attempt(const char *name, const struct spdk_nvme_transport_id *id, const char *source);

/* Returns the number of controllers, those being deleted included. */
uint32_t opi_nvme_count(void);
/* Fails all remote controllers, and their I/O instead of queueing it, so that nothing waits for an unresponsive
 * peer. */
void opi_nvme_give_up(void);
/* Cancels all attach attempts, without calling their `done`: only directly before SPDK stops. There must be no
 * PCIe attempt, since the device would go on using queues in freed memory. */
void opi_nvme_end_attempts(void);

typedef void (*opi_nvme_name_fn)(void *arg, const char *name);
void opi_nvme_for_each_controller(opi_nvme_name_fn fn, void *arg);

enum opi_nvme_path_state {
	OPI_NVME_PATH_CONNECTED,
	OPI_NVME_PATH_STANDBY,
	OPI_NVME_PATH_RESETTING,
	OPI_NVME_PATH_RECONNECTING,
	OPI_NVME_PATH_FAILED,
	OPI_NVME_PATH_DISABLED,
	OPI_NVME_PATH_DELETING,
};

struct opi_nvme_path {
	const struct spdk_nvme_transport_id	*id;
	const char				*source_address;
	const char				*source_port;
	const char				*hostnqn;
	uint16_t				cntlid;
	enum opi_nvme_path_state		state;
	/* False for a standby path of the same connection. */
	bool					active;
};

typedef void (*opi_nvme_path_fn)(void *arg, const struct opi_nvme_path *path);
int opi_nvme_for_each_path(const char *name, opi_nvme_path_fn fn, void *arg);

struct opi_nvme_namespace {
	const char	*bdev;
	uint32_t	nsid;
	/* All zero if the device reports none. */
	uint8_t		uuid[16];
	uint8_t		nguid[16];
	uint8_t		eui64[8];
	bool		over_all_paths;
};

typedef void (*opi_nvme_namespace_fn)(void *arg, const struct opi_nvme_namespace *ns);
int opi_nvme_for_each_namespace(const char *name, opi_nvme_namespace_fn fn, void *arg);
/* Lists active namespaces without a bdev; `bdev` is the name that SPDK would have chosen. */
int opi_nvme_for_each_missing(const char *name, opi_nvme_namespace_fn fn, void *arg);

/* I/O of a bdev over one path that it has now: of the paths of one connection, the active one. */
struct opi_nvme_path_io {
	struct spdk_nvme_transport_id	id;
	char				source_address[SPDK_NVMF_TRADDR_MAX_LEN + 1];
	struct spdk_bdev_io_stat	stat;
	/* Identifies the namespace; never dereferenced, since it may have been freed. */
	const void			*ns;
};

/* Reads the I/O counters of each path of a bdev, since the path exists. `done` is called on the calling thread
 * unless an error is returned; `paths` are valid during that call. -ENODEV if the bdev is not one of an NVMe
 * controller. */
int opi_nvme_read_paths(const char *bdev_name,
			void (*done)(void *arg, const struct opi_nvme_path_io *paths, size_t number),
			void *arg);

/* vhost.c */

/* Returns whether a device (PCIe, RDMA) accesses this bdev's I/O buffers by DMA. For a crypto bdev, whose base is
 * not exposed, any claimed bdev of such a device counts. */
bool opi_bdev_needs_dma(struct spdk_bdev *bdev);

/* Creates a thread bound to the reactor of this core; NULL if out of memory. */
struct spdk_thread *opi_thread_create(const char *name, uint32_t core);

/* observe.c */

struct opi_reactor_time {
	/* Accumulated ticks with work, and without. */
	uint64_t	busy_ticks;
	uint64_t	idle_ticks;
	/* Tick count at the end of the last turn of the reactor's loop. */
	uint64_t	last_turn;
};

/* Any thread, while SPDK runs. Returns false if the core has no reactor. */
bool opi_reactor_read(uint32_t core, struct opi_reactor_time *time);

/* Has SPDK call this after each poll of a thread, where it ran. Returns false if it cannot. Before the reactors run. */
bool opi_watch_polls(void (*polled)(const struct spdk_thread *thread));

/* An I/O buffer pool: buffers in total, free in the pool, and free ones cached by threads. All 0 if SPDK does not
 * expose them. */
struct opi_iobuf_state {
	uint64_t	buffer_bytes;
	uint64_t	buffers;
	uint64_t	free;
	uint64_t	kept;
};

/* The counts of thread caches are those of the last spdk_iobuf_get_stats. App thread. */
void opi_iobuf_state(struct opi_iobuf_state *small, struct opi_iobuf_state *large);

/* Sets how many small and large I/O buffers a thread keeps for bdev, and as many for accel. Returns 0 or a negative errno.
 * Before SPDK starts. */
int opi_iobuf_keep(uint32_t small, uint32_t large);

/* bdev_errors.c */

/* I/Os that a device completed with an error; aborts by hosts and miscompares are not counted. */
struct opi_bdev_errors {
	uint64_t	read;
	/* Includes write-zeroes. */
	uint64_t	write;
	uint64_t	flush;
	uint64_t	other;
};

/* Counters of one bdev since its creation. App thread. */
void opi_bdev_read_errors(const struct spdk_bdev *bdev, struct opi_bdev_errors *errors);
/* The total of all bdevs since the start, deleted ones included. Any thread. */
uint64_t opi_bdev_device_errors(void);

/* Completed flushes, and their accumulated latency in ticks; 0 if SPDK does not count flushes. */
struct opi_bdev_flushes {
	uint64_t	number;
	uint64_t	ticks;
};
struct opi_bdev_flushes opi_bdev_flushes_of(const struct spdk_bdev_io_stat *stat);

/* Whether the processor that this text of /proc/cpuinfo describes lacks features that SPDK was built with: their names,
 * as many as fit. Any thread. */
bool opi_cpu_missing(const char *cpuinfo, char *missing, size_t size);

/* Both pointers are NULL if `status` is not 0. */
typedef void (*opi_bdev_read)(void *arg, const struct spdk_bdev_io_stat *stat,
			      const struct opi_bdev_errors *errors, int status);
/* Always calls `done`. The bdev must stay open until then. */
void opi_bdev_read_counters(struct spdk_bdev *bdev, opi_bdev_read done, void *arg);

/* Called for each non-empty bucket in ascending order: latencies in ticks up to `end`. */
typedef void (*opi_bdev_bucket)(void *arg, uint64_t end, uint64_t count);
/* Reads the bdev's latency histogram. The first call enables it and reports no bucket. Always calls `done`; the
 * bdev must stay open until then. App thread. */
void opi_bdev_read_histogram(struct spdk_bdev *bdev, opi_bdev_bucket bucket,
			     void (*done)(void *arg, int status), void *arg);

#endif
