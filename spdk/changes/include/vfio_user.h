/*
 * Hooks of the door vfio-user. Each is weak: SPDK's own programs link without them, and the code that calls
 * them says what it does then.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* How long a client may take for the rest of a message that it has begun, or for its first one. */
#define OPI_VFIO_USER_MESSAGE_MS 2000

/* Bytes of the message with which a client introduces itself. */
#define OPI_VFIO_USER_VERSION_MAX 4096

/* File descriptors that one message can carry: the kernel's own limit. */
#define OPI_VFIO_USER_FDS_MAX 253

/* Error lines of a reactor that clients and guests can cause, in a second. */
#define OPI_VFIO_USER_LINES_PER_SECOND 20

/* Memory that a client shares: guest addresses, the file's bytes, and what it has shared before. */
struct opi_vfio_user_region {
	uint64_t addr;
	uint64_t size;
	uint64_t offset;
	uint64_t file_size;
	uint64_t mapped;
	bool has_file;
	bool readable;
};

/* What is left of a transfer while its SGL is walked. Starts with `left` and `room`, the rest 0. */
struct opi_vfio_user_walk {
	uint64_t left;
	uint32_t room;
	uint32_t segments;
	bool last;
};

/* Whether the region may be mapped. */
bool __attribute__((weak)) opi_vfio_user_region(const struct opi_vfio_user_region *region);

/* Whether a message with this command, body and number of descriptors has what the command needs. */
bool __attribute__((weak)) opi_vfio_user_message(uint16_t command, uint64_t body, uint64_t fds);

/* Whether a queue of `entries` entries of `entry_size` bytes may lie at this guest address. */
bool __attribute__((weak)) opi_vfio_user_queue(uint64_t addr, uint64_t entries, uint64_t entry_size);

/*
 * How many data pointers a transfer of `length` bytes has in PRPs: 1 is PRP1 alone, 2 has its second
 * page in PRP2, more have a list at PRP2. 0 refuses: too many, or PRP2 is not where it has to be.
 */
uint32_t __attribute__((weak)) opi_vfio_user_prps(uint64_t prp1, uint64_t prp2, uint64_t length, uint32_t max);

/* Takes a data block of an SGL into account; false refuses the command. */
bool __attribute__((weak)) opi_vfio_user_sgl_data(struct opi_vfio_user_walk *walk, uint8_t type,
		uint64_t addr, uint32_t length);

/* How many descriptors the segment has that this descriptor points to; 0 refuses the command. */
uint32_t __attribute__((weak)) opi_vfio_user_sgl_segment(struct opi_vfio_user_walk *walk, uint8_t type,
		uint64_t addr, uint32_t length);

/*
 * Watches shared memory, so that a file cut by its owner ends the owner's session instead of the process: a page
 * that is gone is replaced by an empty one, and the memory counts as cut. NULL: too much is watched already. It is
 * removed before it is unmapped.
 */
void *__attribute__((weak)) opi_guest_memory_add(void *base, size_t length, size_t page);
bool __attribute__((weak)) opi_guest_memory_cut(const void *watch);
void __attribute__((weak)) opi_guest_memory_remove(void *watch);

/* Ends the session of a client that has gone, once nothing uses its memory any more (libvfio-user). */
struct vfu_ctx;
void vfu_reset_lost_ctx(struct vfu_ctx *vfu_ctx);

static inline uint64_t
opi_vfio_user_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
