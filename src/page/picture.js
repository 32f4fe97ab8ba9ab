// The data path: hosts on the left, devices on the right, one column per stage.

const STAGES = [
  { title: 'Hosts', kinds: ['Host', 'NvmeHost', 'NvmeNamespaceMask'] },
  { title: 'Controllers', kinds: ['NvmeController', 'VirtioBlk', 'VirtioScsiController'] },
  { title: 'Subsystems', kinds: ['NvmeSubsystem', 'VirtioScsiTarget'] },
  { title: 'Namespaces', kinds: ['NvmeNamespace', 'VirtioScsiLun'] },
  { title: 'Layers', kinds: ['EncryptedVolume', 'QosVolume', 'DelayVolume'] },
  { title: 'Volumes', kinds: [] },
  { title: 'Remote', kinds: ['NvmeRemoteController', 'NvmePath', 'NvmeCredential', 'DiscoveryReferral'] },
  { title: 'Devices', kinds: ['Device'] },
];
const OTHERS = 5;
// Nodes drawn per column; others are only counted, and found by the filter.
const SHOWN = 40;

const byName = new Intl.Collator('en', { numeric: true }).compare;

const stageOf = kind => {
  const found = STAGES.findIndex(stage => stage.kinds.includes(kind));
  return found < 0 ? OTHERS : found;
};

const isWell = of => of.state === 'applied' || of.state === 'outside';

class Picture {
  constructor(place, detail) {
    this.place = place;
    this.detail = detail;
    this.objects = new Map();
    this.load = new Map();
    this.chosen = null;
    this.filter = '';
    place.addEventListener('click', event => this.#choose(event.target.closest('.node')));
    place.addEventListener('keydown', event => this.#key(event));
    new ResizeObserver(() => this.#lines()).observe(place);
  }

  // Objects by name: {name, kind, state, reason, uses}; hosts and devices, which are no objects, also {title, label, outside}.
  show(objects) {
    this.objects = objects;
    this.links = new Map([...objects.keys()].map(name => [name, new Set()]));
    for (const { name, uses } of objects.values()) {
      for (const other of [...uses, parentOf(name)]) {
        if (!objects.has(other)) continue;
        this.links.get(name).add(other);
        this.links.get(other).add(name);
      }
    }
    if (this.chosen && !objects.has(this.chosen)) this.chosen = null;
    this.draw();
  }

  // The chosen object and all objects on its data path, towards hosts and towards devices.
  way() {
    const on = new Set();
    if (!this.chosen) return on;
    const walk = (from, step) => {
      const todo = [from];
      while (todo.length) {
        const name = todo.pop();
        on.add(name);
        const stage = stageOf(this.objects.get(name).kind);
        for (const next of this.links.get(name)) {
          const there = stageOf(this.objects.get(next).kind);
          if (!on.has(next) && (step > 0 ? there >= stage : there <= stage)) todo.push(next);
        }
      }
    };
    walk(this.chosen, 1);
    on.delete(this.chosen);
    walk(this.chosen, -1);
    return on;
  }

  draw() {
    const focused = document.activeElement?.dataset?.name;
    const on = this.way();
    const matches = of => `${of.name} ${of.kind} ${of.state} ${of.reason ?? ''}`.toLowerCase().includes(this.filter);
    const columns = STAGES.map(() => []);
    for (const of of this.objects.values()) if (on.has(of.name) || matches(of)) columns[stageOf(of.kind)].push(of);
    const lines = svg('svg', { 'aria-hidden': 'true' });
    const drawn = columns.map((all, at) => this.#column(STAGES[at].title, all, on)).filter(Boolean);
    this.place.classList.toggle('chosen', this.chosen !== null);
    this.place.replaceChildren(lines, ...drawn);
    if (!drawn.length) this.place.append(element('p', {}, this.objects.size ? 'Nothing matches the filter.' : 'No objects yet.'));
    const nodes = [...this.place.querySelectorAll('.node')];
    const focusable = nodes.find(of => of.dataset.name === focused) ?? nodes[0];
    for (const node of nodes) node.tabIndex = node === focusable ? 0 : -1;
    if (focused !== undefined && focusable?.dataset.name === focused) focusable.focus({ preventScroll: true });
    this.#lines();
  }

  #column(title, all, on) {
    if (!all.length) return null;
    const weight = of => (on.has(of.name) ? 4e12 : 0) + (isWell(of) ? 0 : 2e12) + (this.load.get(of.name)?.iops ?? 0);
    all.sort((a, b) => weight(b) - weight(a) || byName(a.name, b.name));
    const column = element('div', { className: 'column' }, element('h3', {}, `${title} (${all.length})`));
    column.append(...all.slice(0, SHOWN).map(of => this.#node(of, on)));
    if (all.length > SHOWN) column.append(element('p', {}, `and ${all.length - SHOWN} more: use the filter`));
    return column;
  }

  #node(of, on) {
    const load = this.load.get(of.name);
    const state = isWell(of) ? '' : of.state;
    const says = [of.label ?? of.kind, state, load?.iops ? units.rate(load.iops) : ''].filter(Boolean).join(' · ');
    const node = element('button', { type: 'button', className: on.has(of.name) ? 'node on' : 'node', title: of.reason ?? of.name },
      element('b', {}, of.title ?? idOf(of.name)), element('span', {}, says));
    node.dataset.name = of.name;
    node.dataset.state = of.state;
    node.setAttribute('aria-pressed', String(of.name === this.chosen));
    return node;
  }

  // Draws curves between the visible nodes.
  #lines() {
    const lines = this.place.querySelector('svg');
    if (!lines || getComputedStyle(lines).display === 'none') return;
    const ground = this.place.getBoundingClientRect();
    const boxes = new Map();
    for (const node of this.place.querySelectorAll('.node')) boxes.set(node.dataset.name, node.getBoundingClientRect());
    const paths = [];
    for (const [name, box] of boxes) {
      for (const other of this.links.get(name) ?? []) {
        const to = boxes.get(other);
        // Each pair once, from left to right.
        if (!to || to.left <= box.left) continue;
        const [x, y, x2, y2] = [box.right - ground.left, box.top + box.height / 2 - ground.top, to.left - ground.left, to.top + to.height / 2 - ground.top];
        const on = this.chosen && this.place.querySelector(`.node.on[data-name="${CSS.escape(name)}"]`) && this.place.querySelector(`.node.on[data-name="${CSS.escape(other)}"]`);
        paths.push(svg('path', { d: `M${x},${y} C${(x + x2) / 2},${y} ${(x + x2) / 2},${y2} ${x2},${y2}`, class: on ? 'on' : '' }));
      }
    }
    lines.replaceChildren(...paths);
  }

  #choose(node) {
    if (!node) return;
    this.chosen = this.chosen === node.dataset.name ? null : node.dataset.name;
    this.draw();
    this.#tell();
  }

  async #tell() {
    const of = this.objects.get(this.chosen);
    this.detail.hidden = !of;
    if (!of) return;
    const text = element('pre', {}, '');
    const users = [...this.objects.values()].filter(other => other.uses.includes(of.name)).map(other => other.name);
    this.detail.replaceChildren(
      element('strong', {}, `${of.label ?? of.kind} ${of.title ?? of.name}`),
      element('p', {}, `${of.state}${of.revision ? ` · revision ${of.revision}` : ''}${of.since ? ` · since ${clock(of.since)}` : ''}`),
      element('p', { className: 'reason' }, of.reason ?? ''),
      element('p', {}, of.uses.length ? `uses ${of.uses.join(', ')}` : 'uses nothing else'),
      element('p', {}, users.length ? `used by ${users.slice(0, 20).join(', ')}${users.length > 20 ? ` and ${users.length - 20} more` : ''}` : 'used by nobody'),
      text);
    if (of.outside) return;
    try {
      text.textContent = JSON.stringify(await read(`/v1/${of.name.split('/').map(encodeURIComponent).join('/')}`), null, 2);
    } catch (error) {
      text.textContent = error.message;
    }
  }

  #key(event) {
    const node = event.target.closest('.node');
    if (event.key === 'Escape' && this.chosen) { this.chosen = null; this.draw(); this.#tell(); return; }
    if (!node) return;
    const columns = [...this.place.querySelectorAll('.column')].map(column => [...column.querySelectorAll('.node')]);
    const x = columns.findIndex(column => column.includes(node));
    const y = columns[x].indexOf(node);
    const to = {
      ArrowUp: () => columns[x][y - 1], ArrowDown: () => columns[x][y + 1],
      ArrowLeft: () => columns[x - 1]?.[Math.min(y, columns[x - 1].length - 1)],
      ArrowRight: () => columns[x + 1]?.[Math.min(y, columns[x + 1].length - 1)],
    }[event.key]?.();
    if (!to) return;
    event.preventDefault();
    node.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}
