/* Error and warning lines that a remote can provoke: one a second from each place, the others counted.
 * Included after spdk/log.h, it replaces SPDK_ERRLOG and SPDK_WARNLOG in the rest of the file.
 */
#pragma once

#include "spdk/stdinc.h"
#include "spdk/env.h"
#include "spdk/log.h"

#define OPI_LOG_LIMITED(level, ...)							\
	do {										\
		static __thread uint64_t next, left_out;				\
		uint64_t now = spdk_get_ticks();					\
		if (now < next) {							\
			left_out++;							\
			break;								\
		}									\
		next = now + spdk_get_ticks_hz();					\
		spdk_log(level, __FILE__, __LINE__, __func__, __VA_ARGS__);		\
		if (left_out > 0) {							\
			spdk_log(level, __FILE__, __LINE__, __func__,			\
				 "%" PRIu64 " earlier lines like this one were left out\n",	\
				 left_out);						\
			left_out = 0;							\
		}									\
	} while (0)

#undef SPDK_ERRLOG
#define SPDK_ERRLOG(...) OPI_LOG_LIMITED(SPDK_LOG_ERROR, __VA_ARGS__)
#undef SPDK_WARNLOG
#define SPDK_WARNLOG(...) OPI_LOG_LIMITED(SPDK_LOG_WARN, __VA_ARGS__)
