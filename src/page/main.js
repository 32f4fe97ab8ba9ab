// Main loop, one turn per second: read, show, plot; and show when the server is unreachable. With very many objects
// turns are less frequent, to use at most a fifth of the time. Objects are listed again when an event reports a
// change.

const page = {
  picture: new Picture(byId('picture'), byId('detail')),
  plots: new Plots(byId('plots')),
  rates: new Rates(),
  objects: new Map(),
  load: null,
  events: [],
  hosts: [],
  // The connection metrics when hosts were last listed; null: list them again.
  connections: null,
  stale: true,
  listed: 0,
  // Revision of the last event; null: only events from now on.
  told: null,
  away: null,
};

const EVENTS = 50;
// Pause after a list, in multiples of its duration: listing takes at most a tenth of the time.
const REST = 9;

const words = text => text.replace(/^(CONDITION|EVENT_TYPE)_/, '').replaceAll('_', ' ').toLowerCase();

// An object in the picture's form. The map's key is its path in the API.
function node(of) {
  return {
    name: of.typedName,
    metric: of.name,
    kind: of.kind,
    // An applied object with a reason depends on something that fails.
    state: of.reason && (of.condition ?? 'CONDITION_APPLIED') === 'CONDITION_APPLIED' ? 'offline' : words(of.condition ?? 'CONDITION_APPLIED'),
    reason: of.reason ?? '',
    since: of.since ?? '',
    revision: of.revision ?? '',
    uses: of.uses ?? [],
    device: of.device ?? '',
  };
}

async function listObjects() {
  const begun = performance.now();
  page.stale = false;
  try {
    const all = await list('/v1/objects', 'objects', 100000);
    page.objects = new Map(all.map(node).map(of => [of.name, of]));
  } catch (error) {
    page.stale = true;
    throw error;
  }
  page.listed = performance.now() + REST * (performance.now() - begun);
}

function listen() {
  // Starts with the last events, if the server still keeps them.
  const since = page.told === null ? '' : `?afterRevision=${page.told}`;
  const source = new EventSource(`/v1/events${since}`);
  source.onopen = () => { page.stale = true; };
  source.onmessage = message => {
    const event = JSON.parse(message.data);
    page.told = event.revision ?? page.told;
    page.stale = true;
    page.connections = null;
    page.events.unshift({ time: event.time, what: words(event.type), name: event.object ?? '', text: event.reason ?? '' });
    page.events.length = Math.min(page.events.length, EVENTS);
    lists.events(page.events);
  };
  // The server ends the stream with a reason: list again, and continue from there.
  source.addEventListener('end', () => {
    source.close();
    page.stale = true;
    // The events are no longer kept, or the server has restarted.
    page.told = null;
    setTimeout(listen, 1000);
  });
  source.onerror = () => {
    // A browser reconnects by itself, except after a response that is not a stream.
    if (source.readyState !== EventSource.CLOSED) return;
    page.told = null;
    setTimeout(listen, 2000);
  };
}

// Shows events from before the page was opened first, as far as the server keeps them.
async function begin() {
  try {
    const { revision } = await read('/v1/objects?pageSize=1');
    page.told = Math.max(0, Number(revision) - EVENTS);
  } catch {
    page.told = null;
  }
  listen();
}

// Hosts are listed again only after an event or a change in the number of connections, since the list walks all
// queues.
async function listHosts(metrics) {
  const of = name => (metrics.get(name) ?? []).map(({ labels, value }) => `${Object.values(labels)} ${value}`);
  const connections = [...of('opi_spdk_subsystem_hosts_connected'), ...of('opi_spdk_connections')].join();
  if (connections === page.connections) return;
  page.connections = connections;
  try {
    page.hosts = await list('/v1/hosts', 'hosts', ROWS + 1);
  } catch {
    page.connections = null;
  }
}

// Connected hosts, as a node left of their subsystem's controllers.
function hostsOf(metrics) {
  const hosts = [];
  for (const { labels, value } of metrics.get('opi_spdk_subsystem_hosts_connected') ?? []) {
    if (value > 0) hosts.push({ subsystem: labels.subsystem, nqn: labels.nqn, connections: value });
  }
  return hosts;
}

function totals(load, metrics) {
  const sum = field => [...load.volumes.values()].reduce((all, of) => all + (of[field] || 0), 0);
  const gauge = name => (metrics.get(name) ?? []).reduce((all, of) => all + of.value, 0);
  const count = state => [...page.objects.values()].filter(of => of.state === state).length;
  const [pending, offline] = [count('pending'), count('offline')];
  const [iops, busy] = [sum('iops'), sum('busy')];
  const tile = (name, value, bad) => element('div', { className: bad ? 'bad' : '' }, element('dt', {}, name), element('dd', {}, value));
  byId('totals').replaceChildren(
    tile('IOPS', units.rate(iops)), tile('Bandwidth', units.bytesRate(sum('bytes'))),
    tile('Mean latency', units.seconds(iops > 0 ? busy / iops : NaN)),
    tile('Host connections', units.count(gauge('opi_spdk_subsystem_hosts_connected'))),
    tile('Objects', units.count(page.objects.size)), tile('Pending', units.count(pending), pending > 0),
    tile('Offline', units.count(offline), offline > 0));
}

function show(metrics, load) {
  const hosts = hostsOf(metrics);
  const drawn = new Map(page.objects);
  for (const { subsystem, connections } of hosts) {
    const controllers = [...page.objects.keys()].filter(name => parentOf(name) === subsystem && page.objects.get(name).kind === 'NvmeController');
    const name = `hosts of ${subsystem}`;
    const title = connections === 1 ? '1 connection' : `${connections} connections`;
    drawn.set(name, { name, title, kind: 'Host', label: idOf(subsystem), state: 'outside', outside: true, reason: '', uses: controllers });
  }
  for (const of of page.objects.values()) {
    if (!of.device) continue;
    const name = `device ${of.device}`;
    drawn.set(of.name, { ...of, uses: [...of.uses, name] });
    if (drawn.get(name)?.state === 'offline') continue;
    const [state, reason] = of.state === 'offline' ? [of.state, of.reason] : ['outside', ''];
    drawn.set(name, { name, title: of.device.split('/').pop(), kind: 'Device', label: of.device, state, outside: true, reason, uses: [] });
  }
  page.picture.load = new Map([...page.objects.values()].map(of => [of.name, load.volumes.get(of.metric)]).filter(([, of]) => of));
  page.picture.show(drawn);
  const chosen = page.picture.chosen ? [...page.picture.way()].map(name => page.objects.get(name)?.metric).filter(name => load.volumes.has(name)) : [];
  page.plots.add(load, chosen);
  totals(load, metrics);
  lists.conditions(page.objects);
  lists.paths(page.objects, metrics);
  lists.hosts(page.hosts);
}

function link(state, text) {
  const place = byId('link');
  if (place.dataset.state !== state || place.textContent !== text) {
    place.dataset.state = state;
    place.textContent = text;
  }
  document.body.toggleAttribute('data-away', state === 'away');
}

async function turn() {
  const begun = performance.now();
  if (!document.hidden) await look();
  const took = performance.now() - begun;
  setTimeout(turn, Math.max(1000 - took, 4 * took));
}

async function look() {
  try {
    const { metrics, now } = await readMetrics();
    if (page.stale && performance.now() >= page.listed) await listObjects();
    const load = page.rates.take(metrics, now);
    const [version] = metrics.get('opi_spdk_build_info') ?? [];
    byId('version').textContent = version ? `${version.labels.version} · ${version.labels.spdk}` : '';
    page.load = load;
    await listHosts(metrics);
    if (load) show(metrics, load);
    const unready = await fetch('/readyz', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
    if (unready.ok) link('live', 'live');
    else link('starting', (await unready.text()).trim());
    page.away = null;
  } catch (error) {
    page.away ??= new Date();
    page.rates = new Rates();
    const since = page.away.toLocaleTimeString([], { hour12: false });
    link('away', `the server is away since ${since}: ${error.message}`);
  }
}

byId('filter').addEventListener('input', event => {
  page.picture.filter = event.target.value.trim().toLowerCase();
  page.picture.draw();
});
lists.events(page.events);
begin();
turn();
