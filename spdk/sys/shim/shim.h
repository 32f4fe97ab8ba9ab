/*
 * The part of the bindings that needs C: variadic arguments, inline functions,
 * struct layouts that are not public, and options whose struct differs from build
 * to build. One call each, no decisions. All of it is for SPDK's app thread, save
 * the log sink.
 */
#ifndef OPI_SPDK_SHIM_H
#define OPI_SPDK_SHIM_H

#include <spdk/stdinc.h>
#include <spdk/bdev.h>
#include <spdk/module/bdev/nvme.h>
#include <spdk/nvmf.h>
#include <spdk/uuid.h>

/* log.c */

/* `text` is the formatted line without its newline, `length` bytes, not terminated. */
typedef void (*opi_log_line)(int level, const char *file, int line, const char *text, size_t length);

/* The level at which a line from this place is logged; INT_MAX if it is not to be formatted. */
typedef int (*opi_log_admit)(int level, const char *file, int line, const char *func);

/* Lines of a level above `threshold`, and those that are not admitted, are not formatted. Before SPDK
 * starts. */
void opi_log_configure(opi_log_line sink, opi_log_admit admit, int threshold);

/* Another threshold from now on. Any thread. */
void opi_log_set_threshold(int threshold);

/* An spdk_log_cb that formats and hands on. Any thread. */
void opi_log_sink(int level, const char *file, const int line, const char *func,
		  const char *format, va_list args);

/* bdev.c */

/* `metadata_size` bytes follow each block's data; 0 is none. */
int opi_bdev_malloc_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
			   uint32_t block_size, uint32_t metadata_size);
/* SPDK's memory, in bytes: all of it, what nobody has, and the largest piece of that. */
struct opi_memory {
	uint64_t bytes;
	uint64_t free;
	uint64_t largest_free;
};
void opi_memory_read(struct opi_memory *memory);
int opi_bdev_null_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
			 uint32_t block_size);
/* `block_size` 0 is the file's own. */
int opi_bdev_aio_create(const char *name, const struct spdk_uuid *uuid, const char *filename,
			uint32_t block_size, bool readonly);
int opi_bdev_aio_rescan(const char *name);

/* The name of the module that claims the bdev, NULL if none does. */
const char *opi_bdev_claimed_by(const struct spdk_bdev *bdev);
/* Fails with -EBUSY when an open bdev would shrink. */
int opi_bdev_set_num_blocks(struct spdk_bdev *bdev, uint64_t num_blocks);
/* Always calls back, with 0 or a negative errno. */
void opi_bdev_unregister(struct spdk_bdev *bdev, void (*done)(void *arg, int status), void *arg);
/* `limits` is indexed by spdk_bdev_qos_rate_limit_type. */
void opi_bdev_set_qos_limits(struct spdk_bdev *bdev, uint64_t *limits,
			     void (*done)(void *arg, int status), void *arg);

/* Keys are hexadecimal. The bdev owns what is made of them. */
int opi_bdev_crypto_create(const char *name, const char *base, const char *hex_key,
			   const char *hex_key2);
/* Always calls back, with 0 or a negative errno. */
void opi_bdev_crypto_delete(const char *name, void (*done)(void *arg, int status), void *arg);

/* Microseconds that are added to an I/O: to nearly all, and to one in a hundred. */
struct opi_bdev_delays {
	uint64_t	avg_read_us;
	uint64_t	p99_read_us;
	uint64_t	avg_write_us;
	uint64_t	p99_write_us;
};

int opi_bdev_delay_create(const char *name, const char *base, const struct opi_bdev_delays *delays);
/* Holds for I/O that its base completes from now on. */
int opi_bdev_delay_set(const char *name, const struct opi_bdev_delays *delays);
/* Always calls back, with 0 or a negative errno. */
void opi_bdev_delay_delete(const char *name, void (*done)(void *arg, int status), void *arg);

/* Registers a bdev of that name which takes no I/O, and which the module takes for one of its own: crypto
 * and delay give up a name, and what belongs to it, only together with a bdev. */
int opi_bdev_stand_in(const char *module, const char *name);

/* nvmf.c */

/* Transports are made with the options that SPDK gives them by default. */
int opi_nvmf_transport_create(const char *name, spdk_nvmf_transport_create_done_cb done, void *arg);
/* Has TLS listeners send no session tickets: Linux hosts refuse that record. */
int opi_sock_disable_ssl_tickets(void);

int opi_nvmf_listen(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid, bool secure);

/* Tells all hosts of another discovery service, or no longer. `trid` has its NQN. */
int opi_nvmf_add_referral(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid);
int opi_nvmf_remove_referral(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid);

void opi_nvmf_add_listener(struct spdk_nvmf_subsystem *subsystem,
			   const struct spdk_nvme_transport_id *trid, bool secure,
			   void (*done)(void *arg, int status), void *arg);

/* All-zero identifiers are left to SPDK. `kept` is the name under which reservations are kept, or NULL. A
 * hidden one is shown to no host before that is on its list. The namespace id, 0 on failure. */
uint32_t opi_nvmf_add_ns(struct spdk_nvmf_subsystem *subsystem, const char *bdev_name, uint32_t nsid,
			 const uint8_t uuid[16], const uint8_t nguid[16], const uint8_t eui64[8],
			 const char *kept, bool hidden);

/* Before SPDK makes its target: hosts may not ask for a key exchange of 8,192 bits. */
void opi_nvmf_limit_dhgroups(void);

/* Names of keys in SPDK's keyring, each NULL for none. */
struct opi_nvmf_host_keys {
	/* Of TLS. */
	const char	*psk;
	/* Of DH-HMAC-CHAP: the host's, and the one by which it knows the controller. */
	const char	*dhchap;
	const char	*dhchap_ctrlr;
	/* The same of before, which hold beside them. */
	const char	*old_psk;
	const char	*old_dhchap;
	const char	*old_dhchap_ctrlr;
};

/* -ENOTSUP where SPDK has no place for keys of before. */
int opi_nvmf_add_host(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
		      const struct opi_nvmf_host_keys *keys);
/* Of a host that is admitted, whose connections stay. It has those of `before` if that fails. */
int opi_nvmf_set_host_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
			   const struct opi_nvmf_host_keys *keys,
			   const struct opi_nvmf_host_keys *before);
/* Has the host its keys of now alone. */
void opi_nvmf_end_old_keys(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn);

/* hosts.c */

/* A queue of a host that is connected. */
struct opi_nvmf_queue {
	/* Tells controllers apart; not followed. NULL before the host has said who it is: then only `is_guest` is told. */
	const void	*ctrlr;
	const char	*subnqn;
	/* NULL where SPDK does not tell. */
	const char	*hostnqn;
	uint32_t	size;
	uint32_t	core;
	uint16_t	cntlid;
	uint16_t	qid;
	/* I/O commands that have ended; 0 where SPDK does not tell. */
	uint64_t	completed_io;
	/* A virtual machine's, over vfio-user. */
	bool		is_guest;
	/* Address and port of the host, or the directory of a guest's socket; of the admin queue alone. */
	char		address[320];
};

/* On the queue's thread; it has a controller. */
void opi_nvmf_describe_queue(struct spdk_nvmf_qpair *qpair, struct opi_nvmf_queue *queue);

/* All queues. `queue` is called on the threads of the target's poll groups, one after the other; the texts are valid
 * for the call. `done` is called last, on this thread. A walk is steps of a bounded number of queues; two walks at
 * once would miss some. */
void opi_nvmf_for_each_queue(struct spdk_nvmf_tgt *tgt,
			     void (*queue)(void *arg, const struct opi_nvmf_queue *queue),
			     void (*done)(void *arg, int status), void *arg);

/* Disconnects those that came to the subsystem over a network: of this host, unless that is NULL, and with
 * this controller ID, unless that is negative. -ENOENT if there is none. */
void opi_nvmf_disconnect_hosts(struct spdk_nvmf_tgt *tgt, struct spdk_nvmf_subsystem *subsystem,
			       const char *hostnqn, int32_t cntlid,
			       void (*done)(void *arg, int status), void *arg);

/* keyring.c */

/* Copies the key. Fails with -EEXIST for a name in use. */
int opi_keyring_add(const char *name, const void *data, size_t length);
int opi_keyring_remove(const char *name);

/* nvme.c */

/* Time limits of all controllers. */
struct opi_nvme_limits {
	uint32_t	tcp_connect_ms;
	uint32_t	keep_alive_ms;
	/* Of I/O and of admin commands; not with an SPDK without our changes. */
	uint64_t	io_us;
	uint64_t	admin_us;
};

/* Options of all controllers, before the first is attached. */
int opi_nvme_configure(const struct opi_nvme_limits *limits);

/* Strings may be NULL and numbers 0 for SPDK's default. */
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
	/* Of connecting, now and whenever the path is connected anew. */
	uint32_t				timeout_ms;
	int32_t					ctrlr_loss_timeout_sec;
	uint32_t				reconnect_delay_sec;
	uint32_t				fast_io_fail_timeout_sec;
	bool					header_digest;
	bool					data_digest;
	bool					multipath;
};

/* `names` stays until `done`; the rest is copied. */
int opi_nvme_attach(const struct opi_nvme_attach *attach, const char **names, uint32_t max_names,
		    spdk_bdev_nvme_create_cb done, void *arg);
/* A path is known by where it leads and the address that it comes from, which is empty if it was told
 * none. The next three answer -ENXIO if there is none. */

/* NULL for `id` is every path. */
int opi_nvme_detach(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		    spdk_bdev_nvme_delete_cb done, void *arg);
/* Connects the path anew. -EBUSY while it is being connected anyway. */
int opi_nvme_reset(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		   void (*done)(void *arg, int status), void *arg);

/* The connection of controller `name` that has the path. */
struct nvme_ctrlr *opi_nvme_connection(const char *name, const struct spdk_nvme_transport_id *id,
				       const char *source);

/* nvme_keys.c; both answer -ENXIO if there is no such path. */

/* Gives the connection of the path these keys of the keyring, for when it authenticates next; NULL for none. */
int opi_nvme_set_keys(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
		      const char *key, const char *ctrlr_key);
/* Has the connection of the path authenticate anew, queue by queue; it ends if that fails. Unless it is refused at once,
 * `done` is called, on this thread. At once or by `done`: -EBUSY while it or a queue of it is being connected anyway,
 * -ENOTCONN while it is down, -EALREADY while it authenticates, -EOPNOTSUPP where neither the peer demands it nor has a
 * key to prove itself with. By `done`: -ECANCELED where it has ended meanwhile. */
int opi_nvme_authenticate(const char *name, const struct spdk_nvme_transport_id *id, const char *source,
			  void (*done)(void *arg, int status), void *arg);

/* Ends the attempt to connect the path anew, if there is one: it fails. */
void opi_nvme_end_attempt(const char *name, const struct spdk_nvme_transport_id *id, const char *source);

/* Controllers, those that are going too. */
uint32_t opi_nvme_count(void);
/* Waits for the peers of no controller any more. */
void opi_nvme_give_up(void);
/* Ends all attempts to attach a controller, without a word to who asked: only before SPDK stops. None may
 * be under way over PCIe, where a device would go on using its queues. */
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
	/* Others of the same connection stand by. */
	bool					active;
};

typedef void (*opi_nvme_path_fn)(void *arg, const struct opi_nvme_path *path);
int opi_nvme_for_each_path(const char *name, opi_nvme_path_fn fn, void *arg);

struct opi_nvme_namespace {
	const char	*bdev;
	uint32_t	nsid;
	/* All zero where the device tells none. */
	uint8_t		uuid[16];
	uint8_t		nguid[16];
	uint8_t		eui64[8];
	bool		over_all_paths;
};

typedef void (*opi_nvme_namespace_fn)(void *arg, const struct opi_nvme_namespace *ns);
int opi_nvme_for_each_namespace(const char *name, opi_nvme_namespace_fn fn, void *arg);
/* Namespaces that SPDK made no bdev of; `bdev` is what it would have been called. */
int opi_nvme_for_each_missing(const char *name, opi_nvme_namespace_fn fn, void *arg);

/* I/O of a bdev over one of the paths that it has now; of those of one connection the active one. */
struct opi_nvme_path_io {
	struct spdk_nvme_transport_id	id;
	char				source_address[SPDK_NVMF_TRADDR_MAX_LEN + 1];
	struct spdk_bdev_io_stat	stat;
	/* Not followed: it may be gone. */
	const void			*ns;
};

/* Counts the I/O over each path of a bdev, since there is the path. Unless it is refused, `done` is called, on this
 * thread; `paths` are valid for the call. -ENODEV for a bdev that is none of a controller. */
int opi_nvme_read_paths(const char *bdev_name,
			void (*done)(void *arg, const struct opi_nvme_path_io *paths, size_t number),
			void *arg);

/* vhost.c */

/* Whether a device (PCIe, RDMA) reads and writes the buffers of this bdev's I/O. A bdev over others may say so of
 * another one's. */
bool opi_bdev_needs_dma(struct spdk_bdev *bdev);

/* A thread on the reactor of this core; NULL without memory. */
struct spdk_thread *opi_thread_create(const char *name, uint32_t core);

/* observe.c */

struct opi_reactor_time {
	/* Ticks that it had work, and that it had none. */
	uint64_t	busy_ticks;
	uint64_t	idle_ticks;
	/* When it last ended a turn. */
	uint64_t	last_turn;
};

/* Any thread, while SPDK runs. False where the core has no reactor. */
bool opi_reactor_read(uint32_t core, struct opi_reactor_time *time);

/* A pool of buffers for I/O: how many there are, how many are in the pool, and how many others a thread keeps for
 * itself. All 0 where SPDK does not tell. */
struct opi_iobuf_state {
	uint64_t	buffer_bytes;
	uint64_t	buffers;
	uint64_t	free;
	uint64_t	kept;
};

/* What threads keep is as of the last spdk_iobuf_get_stats. App thread. */
void opi_iobuf_state(struct opi_iobuf_state *small, struct opi_iobuf_state *large);

/* bdev_errors.c */

/* I/Os that a device has answered with errors, not those that hosts abort or that compare unequal. */
struct opi_bdev_errors {
	uint64_t	read;
	/* Write-zeroes are writes. */
	uint64_t	write;
	uint64_t	flush;
	uint64_t	other;
};

/* Of one bdev since it was made. App thread. */
void opi_bdev_read_errors(const struct spdk_bdev *bdev, struct opi_bdev_errors *errors);
/* Of all bdevs since the start, those that are gone too. Any thread. */
uint64_t opi_bdev_device_errors(void);

/* Flushes that were counted, and ticks that they took together; 0 where SPDK does not count them. */
struct opi_bdev_flushes {
	uint64_t	number;
	uint64_t	ticks;
};
struct opi_bdev_flushes opi_bdev_flushes_of(const struct spdk_bdev_io_stat *stat);

/* Both are NULL if `status` is not 0. */
typedef void (*opi_bdev_read)(void *arg, const struct spdk_bdev_io_stat *stat,
			      const struct opi_bdev_errors *errors, int status);
/* Always calls back. The bdev is open meanwhile. */
void opi_bdev_read_counters(struct spdk_bdev *bdev, opi_bdev_read done, void *arg);

/* Told of each bucket that has counted something, in their order: latencies in ticks up to `end`. */
typedef void (*opi_bdev_bucket)(void *arg, uint64_t end, uint64_t count);
/* The histogram of a bdev's latencies. The first call switches it on and tells no bucket. Always calls `done`. The bdev
 * is open meanwhile. App thread. */
void opi_bdev_read_histogram(struct spdk_bdev *bdev, opi_bdev_bucket bucket,
			     void (*done)(void *arg, int status), void *arg);

#endif
