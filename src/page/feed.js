// Data sources of the page: `/metrics` every second, the objects of the API, and its events. Read-only.

// The successful answer to a GET, once its head has arrived.
async function answerOf(path) {
  let answer;
  try {
    answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(5000) });
  } catch (error) {
    throw new Error(error.name === 'TimeoutError' ? 'no answer within 5 s' : 'no connection');
  }
  if (!answer.ok) throw new Error(`${path.split('?')[0]}: ${answer.status}`);
  return answer;
}

const read = async path => (await answerOf(path)).json();

// Reads the metrics. `now` is when the server had read its counters, in milliseconds: neither a long text nor what the
// page does with it counts as time between two readings.
async function readMetrics() {
  const answer = await answerOf('/metrics');
  const now = performance.now();
  return { metrics: parseMetrics(await answer.text()), now };
}

// Reads the pages of a list, up to `limit` items.
async function list(path, field, limit) {
  const all = [];
  let token = '';
  do {
    const page = await read(`${path}?pageSize=250${token && `&pageToken=${encodeURIComponent(token)}`}`);
    all.push(...(page[field] ?? []));
    token = page.nextPageToken ?? '';
  } while (token && all.length < limit);
  return all;
}

// Parses Prometheus text: metric -> [{labels, value}].
function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split('\n')) {
    if (!line || line[0] === '#') continue;
    const space = line.lastIndexOf(' ');
    const brace = line.indexOf('{');
    const name = brace < 0 ? line.slice(0, space) : line.slice(0, brace);
    const sample = { labels: brace < 0 ? {} : parseLabels(line.slice(brace + 1, line.lastIndexOf('}'))), value: Number(line.slice(space + 1)) };
    if (found.has(name)) found.get(name).push(sample);
    else found.set(name, [sample]);
  }
  return found;
}

function parseLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name] = value.replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c));
  }
  return labels;
}

// Difference between two scrapes: rates by volume and by reactor.
class Rates {
  constructor() { this.before = null; }

  take(metrics, now) {
    const before = this.before;
    this.before = { metrics, now };
    if (!before) return null;
    const seconds = (now - before.now) / 1000;
    const of = (metric, label) => this.#differences(before.metrics, metrics, metric, label);
    const volumes = new Map();
    for (const kind of ['read', 'write', 'unmap']) {
      for (const [counter, field] of [['operations', 'iops'], ['bytes', 'bytes'], ['seconds', 'busy']]) {
        for (const [name, value] of of(`opi_spdk_volume_${kind}_${counter}_total`, 'volume')) {
          const volume = volumes.get(name) ?? { iops: 0, bytes: 0, busy: 0, buckets: [] };
          volume[field] += value / seconds;
          volumes.set(name, volume);
        }
      }
    }
    this.#histograms(before.metrics, metrics, volumes);
    const reactors = new Map();
    const idle = of('opi_spdk_reactor_idle_seconds_total', 'core');
    for (const [core, busy] of of('opi_spdk_reactor_busy_seconds_total', 'core')) {
      const all = busy + (idle.get(core) ?? 0);
      reactors.set(core, all > 0 ? busy / all : 0);
    }
    const commands = new Map([...of('opi_spdk_reactor_nvme_operations_total', 'core')].map(([core, number]) => [core, number / seconds]));
    return { volumes, reactors, commands };
  }

  #differences(before, after, metric, label) {
    const old = new Map((before.get(metric) ?? []).map(of => [of.labels[label], of.value]));
    const found = new Map();
    for (const { labels, value } of after.get(metric) ?? []) {
      const known = old.get(labels[label]);
      // A new or reset counter has no rate yet.
      found.set(labels[label], known === undefined || value < known ? 0 : value - known);
    }
    return found;
  }

  #histograms(before, after, volumes) {
    const metric = 'opi_spdk_volume_latency_seconds_bucket';
    const key = ({ labels }) => `${labels.volume}\n${labels.le}`;
    const old = new Map((before.get(metric) ?? []).map(of => [key(of), of.value]));
    for (const sample of after.get(metric) ?? []) {
      const volume = volumes.get(sample.labels.volume);
      const grown = sample.value - (old.get(key(sample)) ?? sample.value);
      // A bucket that has not grown is the lower bound of the next one.
      if (!volume || grown < 0) continue;
      const le = sample.labels.le === '+Inf' ? Infinity : Number(sample.labels.le);
      volume.buckets.push({ le, count: grown });
    }
    for (const volume of volumes.values()) {
      volume.buckets.sort((a, b) => a.le - b.le);
      volume.p50 = quantile(volume.buckets, 0.5);
      volume.p99 = quantile(volume.buckets, 0.99);
    }
  }
}

// Like PromQL's histogram_quantile: linear within a bucket. NaN if there was no I/O.
function quantile(buckets, q) {
  const all = buckets.at(-1)?.count ?? 0;
  if (all <= 0) return NaN;
  let [below, under] = [0, 0];
  for (const { le, count } of buckets) {
    if (count >= q * all) {
      if (!Number.isFinite(le)) return below;
      return count === under ? le : below + (le - below) * (q * all - under) / (count - under);
    }
    [below, under] = [le, count];
  }
  return below;
}
