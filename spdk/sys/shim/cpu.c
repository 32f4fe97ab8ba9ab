/*
 * Ends the process with one line if the processor lacks features that SPDK's code uses unconditionally. Constructors of
 * DPDK and SPDK, which run before main, are compiled for the newer processor: without this check they would end it with
 * SIGILL. Functions of .preinit_array run before all constructors. This file is compiled for every processor of the
 * architecture.
 */

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "opi_cpu.h"
#include "shim.h"

#ifdef __x86_64__
#define CPUINFO_KEY "\nflags"
#else
#define CPUINFO_KEY "\nFeatures"
#endif

/* Instrumented code must not run before the sanitizer's own .preinit_array. */
#ifndef __SANITIZE_ADDRESS__
#define CHECK_BEFORE_CONSTRUCTORS
#endif

static bool
is_separator(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\0';
}

/* Whether the line, which ends with a newline or the text, contains the word. */
static bool
has_word(const char *line, const char *word, size_t length)
{
	for (const char *at = line; *at != '\0' && *at != '\n'; at++) {
		if (is_separator(at[0]) && strncmp(at + 1, word, length) == 0 && is_separator(at[1 + length])) {
			return true;
		}
	}
	return false;
}

/* Appends as much of the text as fits, and keeps it terminated. */
static void
append(char *to, size_t size, const char *text, size_t length)
{
	size_t used = strlen(to);
	size_t left = size - 1 - used;

	length = length < left ? length : left;
	memcpy(to + used, text, length);
	to[used + length] = '\0';
}

bool
opi_cpu_missing(const char *cpuinfo, char *missing, size_t size)
{
	const char *line = strstr(cpuinfo, CPUINFO_KEY);
	const char *word = OPI_CPU_FEATURES;

	missing[0] = '\0';
	line = line == NULL ? NULL : strchr(line, ':');
	/* The text of another architecture, as in an emulator of user space, tells nothing. */
	if (line == NULL) {
		return false;
	}
	while (*word != '\0') {
		size_t length = strcspn(word, " ");

		if (!has_word(line + 1, word, length)) {
			append(missing, size, " ", missing[0] != '\0');
			append(missing, size, word, length);
		}
		word += length;
		word += strspn(word, " ");
	}
	return missing[0] != '\0';
}

#ifdef CHECK_BEFORE_CONSTRUCTORS
static void
say(const char *text)
{
	ssize_t rc = write(STDERR_FILENO, text, strlen(text));

	(void)rc;
}

static void
check_cpu(void)
{
	/* The first processor's part suffices. */
	static char cpuinfo[16384];
	char missing[512];
	size_t used = 0;
	ssize_t rc;
	int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		return;
	}
	while (used < sizeof(cpuinfo) - 1 && (rc = read(fd, cpuinfo + used, sizeof(cpuinfo) - 1 - used)) > 0) {
		used += (size_t)rc;
	}
	close(fd);
	if (opi_cpu_missing(cpuinfo, missing, sizeof(missing))) {
		say("opi-spdk: this processor lacks ");
		say(missing);
		say(": SPDK was built for " OPI_CPU_NAME "; build it for this processor, SPDK_ARCH (docs/operations.md)\n");
		_exit(1);
	}
}

static void (*const check_before_constructors)(void)
	__attribute__((section(".preinit_array"), used)) = check_cpu;
#endif
