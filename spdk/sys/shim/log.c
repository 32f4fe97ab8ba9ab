/* Log lines of SPDK and DPDK. Formatted in C because a va_list cannot be passed to Rust. */

/* For fopencookie. */
#define _GNU_SOURCE

#include <spdk/stdinc.h>
#include <spdk/log.h>
#include <rte_log.h>

#include "shim.h"

enum { OPI_LOG_LINE = 1024 };

/* Identified by its address. */
static const char g_dpdk[] = OPI_LOG_DPDK;

static opi_log_line g_sink;
static opi_log_admit g_admit;
static int g_threshold = SPDK_LOG_NOTICE;

static int
opi_log_level_of_dpdk(void)
{
	switch (rte_log_cur_msg_loglevel()) {
	case RTE_LOG_EMERG:
	case RTE_LOG_ALERT:
	case RTE_LOG_CRIT:
	case RTE_LOG_ERR:
		return SPDK_LOG_ERROR;
	case RTE_LOG_WARNING:
		return SPDK_LOG_WARN;
	case RTE_LOG_NOTICE:
		return SPDK_LOG_NOTICE;
	case RTE_LOG_INFO:
		return SPDK_LOG_INFO;
	default:
		return SPDK_LOG_DEBUG;
	}
}

/* DPDK's lines have no place in the source: lines that differ only in numbers have the same one. */
static int
opi_log_place_of_text(const char *text, size_t length)
{
	uint32_t hash = 2166136261u;
	size_t i;

	for (i = 0; i < length; i++) {
		if (!isxdigit((unsigned char)text[i])) {
			hash = (hash ^ (unsigned char)text[i]) * 16777619u;
		}
	}
	return (int)(hash & INT_MAX);
}

static void
opi_log_dpdk_line(const char *text, size_t length)
{
	int threshold = __atomic_load_n(&g_threshold, __ATOMIC_RELAXED);
	int level = opi_log_level_of_dpdk();
	int place;

	if (length == 0 || level > threshold) {
		return;
	}
	place = opi_log_place_of_text(text, length);
	level = g_admit(level, g_dpdk, place, "");
	if (level <= threshold) {
		g_sink(level, g_dpdk, place, text, spdk_min(length, OPI_LOG_LINE - 1));
	}
}

/* The write function of DPDK's log stream: one or more lines. */
static ssize_t
opi_log_dpdk_write(void *cookie, const char *bytes, size_t size)
{
	const char *at = bytes, *end = bytes + size, *newline;
	int saved_errno = errno;

	while (at < end) {
		newline = memchr(at, '\n', end - at);
		if (newline == NULL) {
			newline = end;
		}
		opi_log_dpdk_line(at, newline - at);
		at = newline + 1;
	}
	errno = saved_errno;
	return size;
}

int
opi_log_configure(opi_log_line sink, opi_log_admit admit, int threshold)
{
	cookie_io_functions_t functions = { .write = opi_log_dpdk_write };
	FILE *dpdk = fopencookie(NULL, "w", functions);

	if (dpdk == NULL) {
		return -errno;
	}
	g_sink = sink;
	g_admit = admit;
	g_threshold = threshold;
	/* Never closed: DPDK logs until the process ends. */
	rte_openlog_stream(dpdk);
	return 0;
}

void
opi_log_set_threshold(int threshold)
{
	__atomic_store_n(&g_threshold, threshold, __ATOMIC_RELAXED);
}

void
opi_log_sink(int level, const char *file, const int line, const char *func, const char *format,
	     va_list args)
{
	char text[OPI_LOG_LINE];
	/* SPDK may log between a failed call and reading errno. */
	int saved_errno = errno;
	int threshold = __atomic_load_n(&g_threshold, __ATOMIC_RELAXED);
	int length;

	if (g_sink == NULL || level > threshold) {
		return;
	}
	level = g_admit(level, file, line, func);
	if (level > threshold) {
		return;
	}
	length = vsnprintf(text, sizeof(text), format, args);
	if (length < 0) {
		return;
	}
	if ((size_t)length >= sizeof(text)) {
		length = sizeof(text) - 1;
	}
	while (length > 0 && text[length - 1] == '\n') {
		length--;
	}
	g_sink(level, file, line, text, (size_t)length);
	errno = saved_errno;
}
