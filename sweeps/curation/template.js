const run = JSON.parse(document.getElementById('data').textContent);
const KEY = 'scenesweep curation ' + run.id;
const WHY = ['corrupted', 'greyscale or line art', 'unsafe', 'no salient object', 'mask is wrong', 'depth is wrong'];
const at = id => document.getElementById(id), grid = at('grid');
const choices = new Map(Object.entries(stored() ?? run.choices).map(([i, c]) => [+i, c]));
let shown = [], current = 0;

function stored() { try { return JSON.parse(localStorage.getItem(KEY)); } catch { return null; } }
function store() {
  try { localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(choices))); }
  catch { at('count').textContent = 'this browser does not store decisions: save before you close the page'; }
}
function why(s) {
  const c = choices.get(s.i);
  if (c) return c.keep ? 'kept manually' : 'dropped manually: ' + (c.reason || 'no reason given');
  return s.rule ? 'dropped: ' + s.rule : '';
}
function picture(box, s) {
  for (const layer of ['image', 'depth', 'mask']) {
    if (!s[layer]) continue;
    const img = document.createElement('img');
    img.className = layer; img.alt = layer === 'image' ? s.prompt : ''; img.decoding = 'async';
    img.src = s[layer]; box.append(img);
  }
}
const watcher = new IntersectionObserver(seen => {
  for (const e of seen) {
    const box = e.target.firstChild;
    if (e.isIntersecting && !box.firstChild) picture(box, run.samples[e.target.dataset.at]);
    if (!e.isIntersecting) box.replaceChildren();
  }
}, {rootMargin: '800px'});
const cards = run.samples.map((s, at) => {
  const card = document.createElement('article'), pic = document.createElement('div');
  const say = document.createElement('span'), line = document.createElement('span');
  card.dataset.at = at;
  card.title = `sample ${s.i}, seed ${s.seed}, foreground ${(100 * s.foreground).toFixed(1)} %\n${s.prompt}`;
  pic.className = 'pic'; say.className = 'say'; line.className = 'why';
  say.textContent = `${s.i}  ${s.prompt}`; card.append(pic, line, say);
  return card;
});
function paint(at) {
  const s = run.samples[at], c = choices.get(s.i);
  cards[at].className = 'card ' + (c ? (c.keep ? 'keep' : 'drop') : s.rule ? 'rule' : '');
  cards[at].children[1].textContent = why(s);
}
const FILTERS = {
  'all': () => true, 'undecided': s => !choices.has(s.i), 'decided': s => choices.has(s.i),
  'in use': s => choices.has(s.i) ? choices.get(s.i).keep : !s.rule,
  'dropped': s => choices.has(s.i) ? !choices.get(s.i).keep : !!s.rule,
};
for (const rule of new Set(run.samples.map(s => s.rule).filter(Boolean)))
  FILTERS['rule: ' + rule] = s => s.rule === rule;
for (const name of Object.keys(FILTERS)) at('filter').add(new Option(name));

function refilter() {
  const words = at('find').value.toLowerCase(), pass = FILTERS[at('filter').value];
  const before = shown[current];
  shown = run.samples.map((_, k) => k)
    .filter(k => pass(run.samples[k]) && run.samples[k].prompt.toLowerCase().includes(words));
  grid.replaceChildren(...shown.map(k => cards[k]));
  move(Math.max(0, shown.indexOf(before)), false);
}
function count() {
  const all = [...choices.values()], kept = all.filter(c => c.keep).length;
  at('count').textContent = `${shown.length} of ${run.samples.length} shown; `
    + `manual decisions: ${kept} kept, ${all.length - kept} dropped`;
}
function move(to, scroll = true) {
  cards[shown[current]]?.removeAttribute('aria-current');
  current = Math.min(Math.max(to, 0), Math.max(0, shown.length - 1));
  const card = cards[shown[current]];
  card?.setAttribute('aria-current', 'true');
  if (scroll) card?.scrollIntoView({block: 'nearest'});
  if (at('large').open) enlarge();
  count();
}
function decide(choice) {
  if (!shown.length) return;
  const s = run.samples[shown[current]];
  choice ? choices.set(s.i, choice) : choices.delete(s.i);
  store(); paint(shown[current]); move(choice ? current + 1 : current);
}
function enlarge() {
  const s = run.samples[shown[current]], [pic, say, line] = at('large').children;
  pic.replaceChildren(); picture(pic, s); say.textContent = `${s.i}  ${s.prompt}`; line.textContent = why(s);
  if (!at('large').open) at('large').showModal();
}
function asText(text) { return /^[=+\-@\t\r]/.test(text) ? "'" + text : text; }  // no formula in a spreadsheet
function quoted(text) { return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text; }
function csv() {
  const rows = run.samples.filter(s => choices.has(s.i)).map(s => {
    const c = choices.get(s.i);
    return [s.i, s.seed, c.keep ? 'keep' : 'drop', ...[c.reason ?? '', s.prompt].map(asText)]
      .map(v => quoted(String(v))).join(',');
  });
  return [run.columns.join(','), ...rows].join('\n') + '\n';
}
function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([csv()], {type: 'text/csv'}));
  link.download = 'decisions.csv'; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function drop(reason) {
  at('own').value = ''; document.activeElement?.blur(); at('reasons').close(); decide({keep: false, reason});
}
WHY.forEach((reason, n) => {
  const item = document.createElement('li'), button = document.createElement('button');
  button.type = 'button'; button.textContent = reason; button.onclick = () => drop(reason);
  item.append(button); at('list').append(item);
});
at('reasons').querySelector('form').onsubmit = e => {
  e.preventDefault(); drop(at('own').value.trim().replace(/\s+/g, ' '));
};
const across = () => getComputedStyle(grid).gridTemplateColumns.split(' ').length;
const ACTS = {
  k: () => decide({keep: true, reason: ''}), d: () => at('reasons').showModal(), u: () => decide(null),
  m: () => document.body.classList.toggle('nomask'), p: () => document.body.classList.toggle('nodepth'), s: save,
  f: () => { const f = at('filter'); f.selectedIndex = (f.selectedIndex + 1) % f.length; refilter(); },
  '?': () => at('keys').showModal(), Enter: () => at('large').open ? at('large').close() : enlarge(),
  ArrowRight: () => move(current + 1), ArrowLeft: () => move(current - 1),
  ArrowDown: () => move(current + across()), ArrowUp: () => move(current - across()),
  Home: () => move(0), End: () => move(shown.length - 1),
};
document.addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (at('reasons').open) {
    const reason = e.target === at('own') && at('own').value ? null : WHY[+e.key - 1];
    if (reason) { e.preventDefault(); drop(reason); }
    return;
  }
  if (at('keys').open || e.target.matches('input,select') || (e.target.matches('button') && e.key === 'Enter')) return;
  const act = ACTS[e.key.length === 1 ? e.key.toLowerCase() : e.key];
  if (act) { e.preventDefault(); act(); }
});
for (const [id, key] of Object.entries({keep: 'k', drop: 'd', undo: 'u', mask: 'm', depth: 'p', save: 's', help: '?'}))
  at(id).onclick = () => { at(id).blur(); ACTS[key](); };
at('filter').onchange = () => { at('filter').blur(); refilter(); };
at('find').oninput = refilter;
grid.onclick = e => { const card = e.target.closest('.card'); if (card) move(shown.indexOf(+card.dataset.at), false); };
grid.ondblclick = enlarge;
cards.forEach((card, k) => { paint(k); watcher.observe(card); });
document.body.classList.add('nodepth');
at('depth').hidden = !run.samples.some(s => s.depth);
refilter();
