"""The page: one document with its style and script inside, in the look of the report. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib

from mavil.report.stylesheet import STYLESHEET

_STYLE = (
    STYLESHEET
    + """
#drop { display: block; margin-top: 24px; padding: 34px 20px; text-align: center; cursor: pointer;
  background: var(--surface); border: 2px dashed var(--muted); border-radius: 10px; }
#drop:hover, #drop.over, #drop:focus-within { border-color: var(--accent); }
#drop b { display: block; font-size: 1.15rem; }
#drop small { color: var(--soft); }
#file { position: absolute; opacity: 0; width: 1px; height: 1px; }
form fieldset { display: inline-flex; flex-wrap: wrap; gap: 4px 14px; border: 0; margin: 14px 34px 0 0; padding: 0; }
form legend { float: left; margin-right: 14px; padding: 0; color: var(--soft); font-size: 0.9rem; }
form label { font-size: 0.9rem; cursor: pointer; }
form .off { opacity: 0.45; cursor: default; }
#status { margin: 18px 0 0; }
#status:empty { display: none; }
#status.failed { padding: 10px 16px; border-left: 6px solid var(--bad); border-radius: 8px; background: var(--bad-ground); }
#query { max-width: 380px; margin-top: 14px; }
#query video { max-height: 220px; background: #000; }
.found { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); margin-top: 14px; }
.found article { margin: 0; padding: 12px; min-width: 0; }
.found h3 { display: flex; justify-content: space-between; gap: 10px; margin: 0 0 8px; font-size: 0.95rem; }
.found h3 span { color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums; }
/* The picture at the top, the browser's controls below it rather than over it. */
.found video { aspect-ratio: 1; object-fit: contain; object-position: top; background: #000; }
.found p { font-size: 0.82rem; margin: 8px 0 0; color: var(--soft); overflow-wrap: anywhere; }
.found .times { white-space: pre-line; }
.found .key { color: var(--ink); }
.found .key::before { content: none; }
[hidden] { display: none !important; }
"""
)

_BODY = """
<header>
<h1>Search by sound or film</h1>
<p>Give a sound, and see the pictures that fit it; give a film, and hear the sounds. <span id="index" class="note"></span></p>
</header>
<main>
<form id="form">
<label id="drop"><input id="file" type="file" accept="audio/*,video/*,.mkv,.flac,.opus,.ts,.avi,.flv,.wmv">
<b>Drop a file here, or choose one</b><small id="limits"></small></label>
<fieldset id="by"><legend>Search by</legend>
<label><input type="radio" name="by" value="" checked> all that it has</label>
<label><input type="radio" name="by" value="audio"> its sound</label>
<label><input type="radio" name="by" value="video"> its picture</label></fieldset>
<fieldset id="find"><legend>Compare with</legend>
<label><input type="radio" name="find" value="" checked> the other of the two</label>
<label><input type="radio" name="find" value="audio"> sounds</label>
<label><input type="radio" name="find" value="video"> pictures</label>
<label><input type="radio" name="find" value="any"> both</label></fieldset>
</form>
<div id="query" hidden></div>
<p id="status" role="status" aria-live="polite"></p>
<div id="results"></div>
</main>
<footer><p id="how"></p></footer>
"""

_SCRIPT = """
'use strict';
const part = id => document.getElementById(id);
const words = {audio: ['sound', 'sounds'], video: ['picture', 'pictures'], any: ['', 'sounds and pictures']};
let about = null, chosen = null, underway = null;

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  return Math.floor(tenths / 600) + ':' + String(Math.floor(tenths / 10) % 60).padStart(2, '0') + '.' + tenths % 10;
}

function say(text, failed) {
  part('status').textContent = text;
  part('status').className = failed ? 'failed' : '';
}

function player(address, hasPicture) {
  const made = element(hasPicture ? 'video' : 'audio');
  made.controls = true;
  made.preload = 'metadata';
  made.src = address;
  return made;
}

function showQuery() {
  const old = part('query').querySelector('video, audio');
  if (old) URL.revokeObjectURL(old.src);
  const shown = player(URL.createObjectURL(chosen), !chosen.type.startsWith('audio/'));
  shown.addEventListener('error', () => shown.remove());
  part('query').replaceChildren(element('h4', 'Your query: ' + chosen.name), shown);
  part('query').hidden = false;
}

function card(match, clipHasPicture) {
  const made = element('article'), head = element('h3', match.rank + '.');
  head.append(element('span', 'cosine ' + match.score.toFixed(3)));
  // A player that is not sent anywhere shows no picture before it is started.
  const start = Math.max(0.01, match.start_seconds);
  const address = 'media/' + match.clip, span = '#t=' + start + ',' + match.end_seconds;
  const shown = player(address + span, clipHasPicture);
  shown.addEventListener('error', () => {
    const link = element('a', 'open the file');
    link.href = address;
    const note = element('p', 'This clip cannot be played here: ');
    note.append(link);
    shown.replaceWith(note);
  });
  const key = element('p', match.key, 'key');
  key.title = match.source;
  const times = clock(match.start_seconds) + '\u2013' + clock(match.end_seconds) + ' of its ' + words[match.modality][0]
    + '\\nfits ' + clock(match.query_start_seconds) + '\u2013' + clock(match.query_end_seconds) + ' of the query';
  made.append(head, shown, key, element('p', times, 'times'));
  return made;
}

function show(answered) {
  const sections = answered.answers.map(answer => {
    const made = element('section');
    made.append(element('h2', 'By its ' + words[answer.by][0] + ': ' + words[answer.find][1]));
    const found = element('div', undefined, 'found');
    found.append(...answer.matches.map(match => card(match, match.has_picture)));
    made.append(found);
    return made;
  });
  part('results').replaceChildren(...sections);
}

async function search() {
  if (!chosen) return;
  if (underway) underway.abort();
  const own = underway = new AbortController();
  part('results').replaceChildren();
  if (about && chosen.size > about.upload_bytes) {
    say('The file has ' + (chosen.size / 1e6).toFixed(1) + ' MB; at most ' + about.upload_bytes / 1e6
      + ' MB are taken: cut out the part you mean.', true);
    return;
  }
  say('Searching \u2026');
  const asked = new URLSearchParams({name: chosen.name.slice(0, 200)});
  for (const [name, value] of new FormData(part('form'))) if (value && typeof value === 'string') asked.set(name, value);
  try {
    const headers = {'Content-Type': 'application/octet-stream'};
    const response = await fetch('search?' + asked, {method: 'POST', body: chosen, headers, signal: own.signal});
    const answered = await response.json();
    if (!response.ok) throw new Error(answered.error);
    say(answered.notes.join('; '));
    show(answered);
  } catch (error) {
    if (error.name === 'AbortError') return;
    say(error instanceof TypeError ? 'The server does not answer: is it still running?' : error.message, true);
  }
}

function choose(files) {
  if (!files.length) return;
  chosen = files[0];
  showQuery();
  search();
}

part('file').addEventListener('change', event => choose(event.target.files));
part('form').addEventListener('submit', event => event.preventDefault());
part('form').addEventListener('change', event => { if (event.target.type === 'radio') search(); });
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    part('drop').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') choose(event.dataTransfer.files);
  });
}

fetch('about').then(response => response.json()).then(told => {
  about = told;
  part('index').textContent = told.num_clips + ' clips in ' + told.index + '.';
  part('limits').textContent = 'at most ' + told.upload_bytes / 1e6 + ' MB; the first ' + told.most_seconds
    + ' s of it are searched';
  part('how').textContent = told.how + ' \u00b7 model ' + told.model;
  const useless = {by: value => value && !told.queries.includes(value), find: value => ['audio', 'video'].includes(value)
    && !told.finds.includes(value)};
  for (const input of document.querySelectorAll('input[type=radio]')) {
    input.disabled = useless[input.name](input.value);
    input.parentElement.classList.toggle('off', input.disabled);
  }
});
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Search by sound or film</title>\n'
    f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n'
    f"<body>{_BODY}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
)
"""All of it; what it says about an index it asks the server for."""
POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; "
    "media-src 'self' blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only this style and this script run, and nothing is fetched from another server."""
