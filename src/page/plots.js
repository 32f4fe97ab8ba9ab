// Lines over the last two minutes.

const KEPT = 120;
const LINES = 5;

class Plot {
  constructor(place, title, unit) {
    this.unit = unit;
    this.series = new Map();
    this.most = element('span', {}, '');
    this.lines = svg('svg', { viewBox: `0 0 ${KEPT - 1} 100`, preserveAspectRatio: 'none', role: 'img', 'aria-label': title });
    this.legend = element('ul');
    place.append(element('figure', {}, element('figcaption', {}, element('strong', {}, title), this.most), this.lines, this.legend));
  }

  // Adds one second: name -> value. `first` are the names to draw, if any is chosen.
  add(values, first) {
    for (const name of values.keys()) if (!this.series.has(name)) this.series.set(name, []);
    for (const [name, line] of this.series) {
      line.push(values.get(name) ?? NaN);
      if (line.length > KEPT) line.shift();
      // Drops series that are gone or have been idle for two minutes.
      if (!values.has(name) && line.every(value => !(value > 0))) this.series.delete(name);
    }
    const now = name => values.get(name) || 0;
    const names = first.length ? first.filter(name => this.series.has(name)) : [...this.series.keys()].sort((a, b) => now(b) - now(a) || (a < b ? -1 : 1));
    this.#draw(names.slice(0, LINES), values);
  }

  #draw(names, values) {
    const most = Math.max(...names.flatMap(name => this.series.get(name).filter(Number.isFinite)), 0);
    this.most.textContent = most > 0 ? `up to ${this.unit(most)}` : '';
    const drawn = [svg('line', { x1: 0, x2: KEPT - 1, y1: 99.5, y2: 99.5 })];
    names.forEach((name, at) => {
      const line = this.series.get(name);
      // Missing values leave a gap.
      let piece = [];
      const flush = () => { if (piece.length) drawn.push(svg('polyline', { points: piece.join(' '), class: `c${at}` })); piece = []; };
      line.forEach((value, i) => {
        if (Number.isFinite(value)) piece.push(`${KEPT - line.length + i},${(98 - 94 * (most > 0 ? value / most : 0)).toFixed(1)}`);
        else flush();
      });
      flush();
    });
    this.lines.replaceChildren(...drawn);
    this.legend.replaceChildren(...names.map((name, at) => element('li', { title: name },
      element('i', { className: `c${at}` }), element('span', {}, idOf(name)), element('b', {}, this.unit(values.get(name) ?? NaN)))));
  }
}

class Plots {
  constructor(place) {
    this.iops = new Plot(place, 'IOPS', value => units.rate(value || 0));
    this.bytes = new Plot(place, 'Bandwidth', value => units.bytesRate(value || 0));
    this.p50 = new Plot(place, 'Latency, p50', units.seconds);
    this.p99 = new Plot(place, 'Latency, p99', units.seconds);
    this.reactors = new Plot(place, 'Reactors, busy', value => units.percent(value || 0));
    this.commands = new Plot(place, 'Reactors, NVMe IOPS', value => units.rate(value || 0));
  }

  add({ volumes, reactors, commands }, chosen) {
    const of = field => new Map([...volumes].map(([name, load]) => [name, load[field]]).filter(([, value]) => Number.isFinite(value) && (value > 0 || field !== 'p50' && field !== 'p99')));
    this.iops.add(of('iops'), chosen);
    this.bytes.add(of('bytes'), chosen);
    this.p50.add(of('p50'), chosen);
    this.p99.add(of('p99'), chosen);
    const byCore = values => new Map([...values].map(([core, value]) => [`core ${core}`, value]));
    this.reactors.add(byCore(reactors), []);
    this.commands.add(byCore(commands), []);
  }
}
