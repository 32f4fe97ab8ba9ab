/* An SPDK keyring module that holds keys in memory only. */

#include <spdk/stdinc.h>
#include <spdk/keyring_module.h>

#include "shim.h"

/* Reactors read keys while the app thread, on a reactor too, removes others. Held only while key data is copied
 * or wiped. */
static pthread_mutex_t g_held = PTHREAD_MUTEX_INITIALIZER;

struct opi_secret {
	const void	*data;
	size_t		length;
};

struct opi_key {
	void	*data;
	size_t	length;
};

static int
opi_keyring_add_key(struct spdk_key *key, void *ctx)
{
	const struct opi_secret *secret = ctx;
	struct opi_key *held = spdk_key_get_ctx(key);

	held->data = malloc(secret->length);
	if (held->data == NULL) {
		return -ENOMEM;
	}
	memcpy(held->data, secret->data, secret->length);
	held->length = secret->length;
	return 0;
}

static void
opi_keyring_remove_key(struct spdk_key *key)
{
	struct opi_key *held = spdk_key_get_ctx(key);

	pthread_mutex_lock(&g_held);
	explicit_bzero(held->data, held->length);
	free(held->data);
	held->data = NULL;
	held->length = 0;
	pthread_mutex_unlock(&g_held);
}

static int
opi_keyring_get_key(struct spdk_key *key, void *buf, int len)
{
	struct opi_key *held = spdk_key_get_ctx(key);
	int rc = -ENOBUFS;

	pthread_mutex_lock(&g_held);
	if (held->data == NULL) {
		rc = -ENOKEY;
	} else if (len >= 0 && (size_t)len >= held->length) {
		memcpy(buf, held->data, held->length);
		rc = (int)held->length;
	}
	pthread_mutex_unlock(&g_held);
	return rc;
}

static size_t
opi_keyring_get_ctx_size(void)
{
	return sizeof(struct opi_key);
}

static struct spdk_keyring_module g_opi_keyring = {
	.name = "opi_memory",
	.add_key = opi_keyring_add_key,
	.remove_key = opi_keyring_remove_key,
	.get_key = opi_keyring_get_key,
	.get_ctx_size = opi_keyring_get_ctx_size,
};

SPDK_KEYRING_REGISTER_MODULE(opi_memory, &g_opi_keyring);

int
opi_keyring_add(const char *name, const void *data, size_t length)
{
	struct opi_secret secret = { .data = data, .length = length };
	struct spdk_key_opts opts = {
		.size = sizeof(opts),
		.name = name,
		.module = &g_opi_keyring,
		.ctx = &secret,
	};

	return spdk_keyring_add_key(&opts);
}

int
opi_keyring_remove(const char *name)
{
	return spdk_keyring_remove_key(name, &g_opi_keyring);
}
