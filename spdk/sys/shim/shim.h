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
#include <spdk/nvmf.h>
#include <spdk/uuid.h>

/* log.c */

/* `text` is the formatted line without its newline, `length` bytes, not terminated. */
typedef void (*opi_log_line)(int level, const char *file, int line, const char *text, size_t length);

/* Lines of a level above `threshold` are not formatted. Before SPDK starts. */
void opi_log_configure(opi_log_line sink, int threshold);

/* An spdk_log_cb that formats and hands on. Any thread. */
void opi_log_sink(int level, const char *file, const int line, const char *func,
		  const char *format, va_list args);

/* bdev.c */

/* `metadata_size` bytes follow each block's data; 0 is none. */
int opi_bdev_malloc_create(const char *name, const struct spdk_uuid *uuid, uint64_t num_blocks,
			   uint32_t block_size, uint32_t metadata_size);
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

/* nvmf.c */

/* Transports are made with the options that SPDK gives them by default. */
int opi_nvmf_transport_create(const char *name, spdk_nvmf_transport_create_done_cb done, void *arg);
/* Has TLS listeners send no session tickets: Linux hosts refuse that record. */
int opi_sock_disable_ssl_tickets(void);

int opi_nvmf_listen(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid, bool secure);
void opi_nvmf_add_listener(struct spdk_nvmf_subsystem *subsystem,
			   const struct spdk_nvme_transport_id *trid, bool secure,
			   void (*done)(void *arg, int status), void *arg);

/* All-zero identifiers are left to SPDK. The namespace id, 0 on failure. */
uint32_t opi_nvmf_add_ns(struct spdk_nvmf_subsystem *subsystem, const char *bdev_name, uint32_t nsid,
			 const uint8_t uuid[16], const uint8_t nguid[16], const uint8_t eui64[8]);

/* `psk_name` is the name of a key in SPDK's keyring, or NULL. */
int opi_nvmf_add_host(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn,
		      const char *psk_name);

#endif
