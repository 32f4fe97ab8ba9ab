// Shared by all parts of the page: elements, units, time.

const byId = id => document.getElementById(id);

// An element with properties and children. Text is always text, never markup.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function scaled(value, unit, step, names) {
  let at = 0;
  while (Math.abs(value) >= step && at < names.length - 1) { value /= step; at += 1; }
  const digits = !Number.isInteger(value) && Math.abs(value) < 10 ? 1 : 0;
  return `${value.toFixed(digits)} ${names[at]}${unit}`.trim();
}

const units = {
  count: value => scaled(value, '', 1000, ['', 'k', 'M', 'G']),
  rate: value => scaled(value, '', 1000, ['', 'k', 'M', 'G']) + '/s',
  bytes: value => scaled(value, 'B', 1024, ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi']),
  bytesRate: value => scaled(value, 'B', 1024, ['', 'Ki', 'Mi', 'Gi', 'Ti']) + '/s',
  percent: value => `${(100 * value).toFixed(0)} %`,
  seconds: value => {
    if (!Number.isFinite(value)) return '–';
    if (value >= 1) return `${value.toFixed(1)} s`;
    return value >= 1e-3 ? `${(1e3 * value).toFixed(1)} ms` : `${(1e6 * value).toFixed(0)} µs`;
  },
};

const clock = text => {
  const time = new Date(text);
  return Number.isNaN(time.getTime()) ? '' : time.toLocaleTimeString([], { hour12: false });
};

// The ID: the last part of a resource name.
const idOf = name => name.split('/').at(-1);
// "nvmeSubsystems/a/nvmeNamespaces/b" is a child of "nvmeSubsystems/a".
const parentOf = name => name.split('/').slice(0, -2).join('/');
