// Tables below the plots.

function table(headings, rows, none, all = rows) {
  if (!rows.length) return element('p', { className: 'hint' }, none);
  const head = element('tr', {}, ...headings.map(text => element('th', { scope: 'col' }, text)));
  const body = rows.map(cells => element('tr', {}, ...cells.map(cell => (cell instanceof Node ? cell : element('td', {}, String(cell ?? ''))))));
  const parts = [element('thead', {}, head), element('tbody', {}, ...body)];
  if (all.length > rows.length) parts.unshift(element('caption', { className: 'hint' }, `only the first ${rows.length} are shown`));
  return element('table', {}, ...parts);
}

const at = text => element('td', {}, element('time', { dateTime: text ?? '', title: text ?? '' }, clock(text)));
const state = (text, good) => element('td', { className: good ? 'good' : 'bad' }, text);

// Maximum number of rows of a table; the picture's filter finds the others.
const ROWS = 100;
const cut = rows => rows.slice(0, ROWS);

const lists = {
  conditions(objects) {
    const bad = [...objects.values()].filter(of => of.state !== 'applied');
    bad.sort((a, b) => ((a.since ?? '') < (b.since ?? '') ? 1 : -1));
    byId('conditions').replaceChildren(table(['Object', 'State', 'Since', 'Reason'],
      cut(bad).map(of => [of.name, state(of.state, false), at(of.since), of.reason]), 'All objects are applied, and their devices work.', bad));
  },
  hosts(hosts) {
    byId('hosts').replaceChildren(table(['Subsystem', 'Host', 'Address', 'Controller', 'Queues'],
      cut(hosts).map(of => [of.subsystem, of.hostNqn || '-', of.address, of.controllerId, (of.queues ?? []).length]), 'No host is connected.', hosts));
  },
  paths(objects, metrics) {
    const paths = [...objects.values()].filter(of => of.kind === 'NvmePath');
    const down = new Set((metrics.get('opi_spdk_path_connected') ?? []).filter(of => of.value === 0).map(of => of.labels.path));
    const drops = of => of.state === 'offline' || (of.state === 'applied' && down.has(of.metric));
    const is = of => (drops(of) ? 'down' : of.state === 'applied' ? 'up' : of.state);
    byId('paths').replaceChildren(table(['Path', 'State', 'Reason'],
      cut(paths).map(of => [of.name, state(is(of), is(of) === 'up'), of.reason]), 'No remote controller has a path.', paths));
  },
  events(events) {
    byId('events').replaceChildren(table(['Time', 'Event', 'Object', ''],
      events.map(of => [at(of.time), of.what, of.name, of.text]), 'There have been no events.'));
  },
};
