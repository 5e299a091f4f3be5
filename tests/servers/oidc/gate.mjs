// What stands between the socket and the provider (or the API): records every request, and delays,
// holds, replaces or cuts answers as the test wishes.

import { createHash } from 'node:crypto';
import * as http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

import { changed, note, realNow, settings } from './state.mjs';

export const sha256 = (text) => createHash('sha256').update(text).digest('hex');

const records = []; // one per request, in order of arrival
const inFlight = new Map(); // group -> requests now under way
const largest = new Map(); // group -> the most there ever were
export const faults = [];
export const latency = {}; // endpoint -> ms before processing
const holds = {}; // endpoint -> { when, match }
let held = []; // { endpoint, record, go }
const connections = { opened: 0, open: 0 };
let serial = 0;

// ---- records

function groups(record) {
  const names = [record.endpoint];
  if (record.grant_type) names.push(`${record.endpoint} ${record.client_id} ${record.grant_type}`);
  if (record.refresh_token_sha256) names.push(`refresh_token ${record.refresh_token_sha256}`);
  return names;
}

function begin(record) {
  record.groups = groups(record);
  for (const name of record.groups) {
    const now = (inFlight.get(name) ?? 0) + 1;
    inFlight.set(name, now);
    largest.set(name, Math.max(largest.get(name) ?? 0, now));
  }
  records.push(record);
  changed();
}

function end(record) {
  for (const name of record.groups) {
    const now = inFlight.get(name);
    if (now !== undefined) inFlight.set(name, Math.max(0, now - 1));
  }
  record.ended_ms = realNow();
  changed();
}

function clientOf(request, form) {
  const [scheme, value] = (request.headers.authorization ?? '').split(' ');
  if (scheme.toLowerCase() === 'basic' && value) {
    const [id] = Buffer.from(value, 'base64').toString().split(':');
    return decodeURIComponent(id.replaceAll('+', ' '));
  }
  const assertion = form.get('client_assertion')?.split('.')[1];
  if (form.get('client_id') || !assertion) return form.get('client_id');
  try {
    return JSON.parse(Buffer.from(assertion, 'base64url').toString()).iss;
  } catch {
    return null;
  }
}

function describe(request, endpoint, body) {
  const { pathname } = new URL(request.url, 'http://localhost');
  serial += 1;
  const record = {
    n: serial,
    at_ms: realNow(),
    endpoint,
    method: request.method,
    path: pathname,
    connection: request.socket.number,
    dpop: 'dpop' in request.headers,
    status: null,
    error: null,
    ended_ms: null,
  };
  const form = (request.headers['content-type'] ?? '').startsWith('application/x-www-form-urlencoded');
  if (!form || endpoint === 'api') return record;
  const parameters = new URLSearchParams(body.toString());
  const hash = (name) => (parameters.has(name) ? sha256(parameters.get(name)) : null);
  return {
    ...record,
    client_id: clientOf(request, parameters),
    grant_type: parameters.get('grant_type'),
    resource: parameters.getAll('resource'),
    scope: parameters.get('scope'),
    refresh_token_sha256: hash('refresh_token'),
    token_sha256: hash('token'),
    client_assertion_sha256: hash('client_assertion'),
    parameters: [...parameters.keys()].sort(),
  };
}

const count = (matches) => records.filter(matches).length;

export function stats() {
  const endpoints = {};
  const tokens = {};
  for (const record of records) {
    endpoints[record.endpoint] = (endpoints[record.endpoint] ?? 0) + 1;
    if (record.endpoint !== 'token') continue;
    const client = (tokens[record.client_id] ??= {});
    const kind = (client[record.grant_type] ??= { count: 0, errors: {} });
    kind.count += 1;
    kind.max_in_flight = largest.get(`token ${record.client_id} ${record.grant_type}`) ?? 0;
    if (record.error) kind.errors[record.error] = (kind.errors[record.error] ?? 0) + 1;
  }
  const spent = records.map((record) => record.refresh_token_sha256).filter(Boolean);
  return {
    endpoints,
    tokens,
    in_flight: Object.fromEntries([...inFlight].filter(([name]) => !name.includes(' '))),
    max_in_flight: Object.fromEntries([...largest].filter(([name]) => !name.includes(' '))),
    max_in_flight_same_refresh_token: Math.max(
      0,
      ...[...largest].filter(([name]) => name.startsWith('refresh_token ')).map(([, most]) => most),
    ),
    refresh_tokens_sent: spent.length,
    refresh_tokens_sent_twice: spent.length - new Set(spent).size,
    replays: count((record) => record.replay),
    connections: { ...connections },
    requests: records.map(({ groups: _, ...record }) => record),
  };
}

export function resetStats() {
  records.length = 0;
  largest.clear();
  for (const [name, now] of inFlight) if (now) largest.set(name, now);
}

export const seen = (endpoint, ended) =>
  count((record) => (!endpoint || record.endpoint === endpoint) && (!ended || record.ended_ms));

// ---- faults and holds

const matches = (wanted, record) =>
  Object.entries(wanted ?? {}).every(([name, value]) => record[name] === value);

function takeFault(record, when) {
  const fault = faults.find(
    (one) => one.endpoint === record.endpoint && (one.when ?? 'before') === when && matches(one.match, record),
  );
  if (!fault) return undefined;
  if (fault.skip > 0) {
    fault.skip -= 1;
    return undefined;
  }
  if (fault.times !== null && fault.times !== undefined) {
    fault.times -= 1;
    if (fault.times <= 0) faults.splice(faults.indexOf(fault), 1);
  }
  fault.used = (fault.used ?? 0) + 1;
  record.fault = fault.id;
  return fault;
}

export function addFaults(list) {
  for (const fault of list) {
    serial += 1;
    faults.push({ ...fault, id: serial });
  }
  return faults;
}

export function hold(wanted) {
  for (const [endpoint, value] of Object.entries(wanted)) {
    if (value) holds[endpoint] = { when: 'after', ...(value === true ? {} : value) };
    else delete holds[endpoint];
  }
}

/** Lets the first n held answers go; without n, all, and holds no more. */
export function release({ n, endpoint } = {}) {
  const concerned = held.filter((one) => !endpoint || one.endpoint === endpoint);
  if (n === undefined) {
    for (const name of Object.keys(holds)) if (!endpoint || name === endpoint) delete holds[name];
  }
  const going = concerned.slice(0, n ?? concerned.length);
  held = held.filter((one) => !going.includes(one));
  for (const one of going) one.go();
  changed();
  return going.length;
}

export function pristine() {
  resetStats();
  release();
  faults.length = 0;
  for (const name of Object.keys(latency)) delete latency[name];
}

export const heldRequests = (endpoint) =>
  held.filter((one) => !endpoint || one.endpoint === endpoint).map(({ record }) => record.n);

function waitIfHeld(record, when) {
  const wanted = holds[record.endpoint];
  if (!wanted || wanted.when !== when || !matches(wanted.match, record)) return undefined;
  return new Promise((go) => {
    held.push({ endpoint: record.endpoint, record, go });
    changed();
  });
}

// ---- answering

async function readAll(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** Runs a handler that writes to a ServerResponse, and keeps what it writes. */
async function capture(handler, request, response) {
  const finish = response.end;
  let body = '';
  response.end = (chunk) => {
    body = chunk ?? '';
    return response;
  };
  await handler(request, response);
  response.end = finish;
  return body;
}

function encode(body) {
  return typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body);
}

function cut(response, how, body) {
  if (how !== 'body') return response.socket?.destroy();
  const bytes = Buffer.from(body);
  response.setHeader('Content-Length', Math.max(bytes.length, 2));
  response.flushHeaders();
  return response.write(bytes.subarray(0, Math.floor(bytes.length / 2)), () => response.socket?.destroy());
}

function patched(body, patch) {
  const answer = { ...JSON.parse(body), ...patch };
  for (const [name, value] of Object.entries(answer)) if (value === null) delete answer[name];
  return JSON.stringify(answer);
}

async function finish(response, record, body, fault, resign) {
  if (fault?.delay_ms) await sleep(fault.delay_ms);
  if (response.gone) return undefined;
  if (fault?.cut) return cut(response, fault.cut, body);
  let out = body;
  if (fault?.status) response.statusCode = fault.status;
  if (fault?.body !== undefined) {
    out = encode(fault.body);
    for (const name of response.getHeaderNames()) response.removeHeader(name);
    if (typeof fault.body === 'object') response.setHeader('Content-Type', 'application/json');
  }
  if (fault?.patch) out = patched(out, fault.patch);
  if (fault?.id_token) out = patched(out, { id_token: await resign(JSON.parse(out).id_token, fault.id_token) });
  for (const [name, value] of Object.entries(fault?.headers ?? {})) {
    if (value === null) response.removeHeader(name);
    else response.setHeader(name, value);
  }
  if (settings.clock_offset && !response.hasHeader('Date')) response.setHeader('Date', new Date().toUTCString());
  record.sent_status = response.statusCode;
  if (record.method !== 'HEAD') response.setHeader('Content-Length', Buffer.byteLength(out));
  return new Promise((resolve) => {
    response.once('close', resolve);
    response.end(out);
  });
}

function outcome(record, response, body) {
  record.status = response.statusCode;
  if (response.statusCode < 400 || record.error) return;
  try {
    record.error = JSON.parse(body).error ?? null;
  } catch {
    record.error = null;
  }
}

/**
 * A request listener around `process(request, response)`, which may only use `response.end(body)`.
 * `endpointOf(request)` names the endpoint; `rewrite(record, request, response, body)` may change the
 * answer of the provider itself, before any fault.
 */
export function gate({ endpointOf, process, rewrite = (_record, _request, _response, body) => body, resign }) {
  async function answer(request, response) {
    request.raw = await readAll(request);
    request.body = request.raw.toString('latin1');
    const record = describe(request, endpointOf(request), request.raw);
    request.record = record;
    begin(record);
    response.once('close', () => {
      response.gone = true;
      record.client_gone = !response.writableFinished;
    });
    try {
      const before = takeFault(record, 'before');
      await sleep(latency[record.endpoint] ?? 0);
      await waitIfHeld(record, 'before');
      if (before && (before.cut || before.status || before.body !== undefined)) {
        return await finish(response, record, '', before, resign);
      }
      if (before?.delay_ms) await sleep(before.delay_ms);
      let body = await capture(process, request, response);
      body = await rewrite(record, request, response, body);
      outcome(record, response, body);
      const after = takeFault(record, 'after');
      await waitIfHeld(record, 'after');
      return await finish(response, record, body, after, resign);
    } finally {
      end(record);
    }
  }
  return (request, response) => {
    answer(request, response).catch((error) => {
      note('failed', { detail: error.stack });
      response.socket?.destroy();
    });
  };
}

/** A server on 127.0.0.1 whose connections are counted and which can stop and listen again. */
export class Listener {
  constructor(listener, port = 0) {
    this.port = port;
    this.listener = listener;
  }

  listen() {
    this.server = http.createServer({ keepAliveTimeout: settings.keep_alive_ms }, this.listener);
    this.server.on('connection', (socket) => {
      connections.opened += 1;
      connections.open += 1;
      socket.number = connections.opened;
      socket.on('error', () => {});
      socket.once('close', () => {
        connections.open -= 1;
      });
    });
    return new Promise((resolve, reject) => {
      this.server.once('error', reject);
      this.server.listen(this.port, '127.0.0.1', 1024, () => {
        this.port = this.server.address().port;
        resolve(this);
      });
    });
  }

  stop() {
    const closed = new Promise((resolve) => {
      this.server.close(resolve);
    });
    this.server.closeAllConnections();
    return closed;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }
}
