/* SPDK's log lines. Formatted in C because a va_list cannot be passed to Rust. */

#include <spdk/stdinc.h>
#include <spdk/log.h>

#include "shim.h"

enum { OPI_LOG_LINE = 1024 };

static opi_log_line g_sink;
static opi_log_admit g_admit;
static int g_threshold = SPDK_LOG_NOTICE;

void
opi_log_configure(opi_log_line sink, opi_log_admit admit, int threshold)
{
	g_sink = sink;
	g_admit = admit;
	g_threshold = threshold;
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
