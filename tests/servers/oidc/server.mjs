// node server.mjs '{"settings": {…}, "clients": [{…}]}'
//
// Starts the provider, an API and the admin surface on three ports of 127.0.0.1, prints one line of
// JSON, {"issuer", "api", "admin"}, and ends when its standard input is closed.

import * as http from 'node:http';

import * as api from './api.mjs';
import * as gates from './gate.mjs';
import * as oidc from './provider.mjs';
import { all, endSessions, revokeGrants } from './store.mjs';
import { apply, log, note, settings, until } from './state.mjs';

process.stdin.resume().on('end', () => process.exit(0)).on('error', () => process.exit(0));
for (const name of ['log', 'info', 'warn', 'error', 'debug']) {
  console[name] = (...words) => log.push({ event: 'console', detail: words.join(' ') });
}

const start = JSON.parse(process.argv[2] ?? '{}');
apply(start.settings);

const ENDPOINTS = {
  '/token': 'token',
  '/token/revocation': 'revocation',
  '/token/introspection': 'introspection',
  '/jwks': 'jwks',
  '/me': 'userinfo',
  '/request': 'par',
  '/auth': 'authorization',
  '/session/end': 'end_session',
  '/session/end/confirm': 'end_session_confirm',
  '/device/auth': 'device_authorization',
};

function endpointOf({ url }) {
  const { pathname } = new URL(url, 'http://localhost');
  if (pathname.startsWith('/.well-known/')) return 'discovery';
  if (pathname.startsWith('/auth/')) return 'resume';
  return ENDPOINTS[pathname] ?? pathname.split('/')[1];
}

let provider;
let callback;

function build() {
  settings.resources[resource.url] ??= { scope: 'read write', format: 'jwt' };
  provider = oidc.build(issuer.url, (value) => api.findToken(provider, value));
  callback = provider.callback();
}

async function run(request, response) {
  if (request.url.startsWith('/interaction/')) return oidc.interact(provider, request, response);
  return callback(request, response);
}

// ---- pages that submit themselves in a browser are submitted here, for clients without script

const FORM = /<form[^>]* action="([^"]+)"[^>]*>([\s\S]*?)<\/form>/;
const INPUT = /<input type="hidden" name="([^"]+)" value="([^"]*)"/g;
const unescape = (text) => text.replace(/&amp;/g, '&').replace(/&quot;/g, '"').replace(/&#39;/g, "'");

function cookiesAfter(request, response) {
  const jar = new Map((request.headers.cookie ?? '').split('; ').filter(Boolean).map((pair) => pair.split(/=(.*)/s)));
  for (const cookie of [response.getHeader('set-cookie') ?? []].flat()) {
    const [name, value] = cookie.split(';')[0].split(/=(.*)/s);
    if (value) jar.set(name, value);
    else jar.delete(name);
  }
  return [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
}

function post(url, form, cookie) {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/x-www-form-urlencoded', cookie };
    const sent = http.request(url, { method: 'POST', headers, agent: false }, (answer) => {
      let body = '';
      answer.setEncoding('utf8').on('data', (chunk) => { body += chunk; }).on('end', () => resolve({ answer, body }));
    });
    sent.on('error', reject).end(form.toString());
  });
}

async function submitted(request, response, body) {
  const [, action, inputs] = FORM.exec(body) ?? [];
  if (!action || new URL(unescape(action), issuer.url).origin !== issuer.url) return body;
  const form = new URLSearchParams([...inputs.matchAll(INPUT)].map(([, name, value]) => [name, unescape(value)]));
  const { answer, body: result } = await post(unescape(action), form, cookiesAfter(request, response));
  const cookies = [response.getHeader('set-cookie') ?? [], answer.headers['set-cookie'] ?? []].flat();
  for (const name of response.getHeaderNames()) response.removeHeader(name);
  for (const [name, value] of Object.entries(answer.headers)) {
    if (!['connection', 'keep-alive', 'transfer-encoding', 'set-cookie'].includes(name)) response.setHeader(name, value);
  }
  if (cookies.length) response.setHeader('set-cookie', cookies);
  response.statusCode = answer.statusCode;
  return result;
}

async function rewrite(record, request, response, body) {
  if (record.endpoint === 'discovery' && response.statusCode === 200) {
    const changes = record.path.endsWith('openid-configuration') ? settings.metadata : settings.oauth_metadata;
    const document = { ...JSON.parse(body), ...changes };
    for (const [name, value] of Object.entries(document)) if (value === null) delete document[name];
    return JSON.stringify(document);
  }
  if (record.grant_type === 'refresh_token' && !settings.id_token_on_refresh && response.statusCode === 200) {
    const { id_token: _, ...answer } = JSON.parse(body);
    return JSON.stringify(answer);
  }
  const html = String(response.getHeader('content-type') ?? '').startsWith('text/html');
  if (settings.auto_submit && html && body) return submitted(request, response, String(body));
  return body;
}

const issuer = new gates.Listener(
  gates.gate({ endpointOf, process: run, rewrite, resign: oidc.resign }),
  start.port,
);
const resource = new gates.Listener(
  gates.gate({
    endpointOf: () => 'api',
    process: (request, response) => api.answer(provider, resource.url, request, response),
  }),
  start.api_port,
);

// ---- the admin surface

const listeners = { issuer, api: resource };
const chosen = ({ server = 'issuer' }) => listeners[server];
const owned = ({ account, client_id: client }) => (payload) =>
  (!account || payload.accountId === account) && (!client || payload.clientId === client);

let atStart;

function change(changes) {
  apply(changes);
  for (const { server } of Object.values(listeners)) server.keepAliveTimeout = settings.keep_alive_ms;
  if (Object.keys(changes).some((name) => REBUILD.includes(name))) build();
  return settings;
}

const REBUILD = ['resources', 'id_token_claims', 'require_par', 'dpop_nonce'];

const admin = {
  'GET /stats': () => gates.stats(),
  'POST /reset': () => gates.resetStats(),
  'GET /log': () => log,
  'GET /settings': () => settings,
  'POST /settings': change,
  'POST /pristine': async () => {
    for (const listener of Object.values(listeners)) if (!listener.server.listening) await listener.listen();
    gates.pristine();
    api.acceptAll();
    log.length = 0;
    change(atStart);
  },
  'POST /clients': async (metadata) => {
    await provider.Client.validate(metadata);
    await provider.Client.adapter.upsert(metadata.client_id, metadata);
    return (await provider.Client.find(metadata.client_id)).metadata();
  },
  'POST /faults': (list) => gates.addFaults([list].flat()),
  'GET /faults': () => gates.faults,
  'POST /clear_faults': () => gates.faults.splice(0).length,
  'POST /latency': (changes) => Object.assign(gates.latency, changes),
  'POST /hold': (wanted) => gates.hold(wanted),
  'POST /release': (which) => ({ released: gates.release(which) }),
  'GET /held': ({ endpoint }) => ({ count: gates.heldRequests(endpoint).length }),
  'GET /wait_held': async ({ n = 1, endpoint, timeout_ms: timeout = 10000 }) => {
    const done = await until(() => gates.heldRequests(endpoint).length >= Number(n), Number(timeout));
    return { done, count: gates.heldRequests(endpoint).length };
  },
  'GET /wait_requests': async ({ n = 1, endpoint, ended, timeout_ms: timeout = 10000 }) => {
    const done = await until(() => gates.seen(endpoint, ended) >= Number(n), Number(timeout));
    return { done, count: gates.seen(endpoint, ended) };
  },
  'POST /rotate_keys': async (options) => {
    const kids = await oidc.rotateKeys(options);
    build();
    return { kids };
  },
  'POST /sign': async ({ claims, header }) => ({ jwt: await oidc.sign(claims, header) }),
  'POST /void_nonces': () => {
    oidc.voidNonces();
    api.voidApiNonces();
    build();
  },
  'POST /revoke_grants': (which) => ({ revoked: revokeGrants(owned(which)) }),
  'POST /end_sessions': (which) => ({ ended: endSessions(owned(which)) }),
  'GET /grants': (which) => all('Grant', owned(which)).map(({ payload }) => payload),
  'POST /backchannel_logout': async ({ client_id: id, sub, sid }) => {
    await (await provider.Client.find(id)).backchannelLogout(sub, sid);
  },
  'POST /api/reject': ({ sha256, times }) => {
    api.reject(sha256, times);
  },
  'POST /close_idle': (which) => chosen(which).server.closeIdleConnections(),
  'POST /stop_listening': (which) => chosen(which).stop().then(() => undefined),
  'POST /listen': (which) => chosen(which).listen().then(() => undefined),
};

async function administer(request, response) {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  let text = '';
  for await (const chunk of request) text += chunk;
  const handler = admin[`${request.method} ${pathname}`];
  response.setHeader('Content-Type', 'application/json');
  try {
    if (!handler) throw new TypeError(`no such admin call: ${request.method} ${pathname}`);
    const result = await handler(text ? JSON.parse(text) : Object.fromEntries(searchParams));
    response.end(JSON.stringify(result ?? {}));
  } catch (error) {
    response.statusCode = 400;
    response.end(JSON.stringify({ error: `${error.message} ${error.error_description ?? ''}`.trim() }));
  }
}

const control = new gates.Listener(administer);
await Promise.all([oidc.rotateKeys(), issuer.listen(), resource.listen(), control.listen()]);
build();
atStart = structuredClone(settings);
for (const client of start.clients ?? []) await admin['POST /clients'](client);
process.on('uncaughtException', (error) => note('uncaught', { detail: error.stack }));
process.on('unhandledRejection', (error) => note('unhandled', { detail: error?.stack ?? String(error) }));
process.stdout.write(`${JSON.stringify({ issuer: issuer.url, api: resource.url, admin: control.url })}\n`);
