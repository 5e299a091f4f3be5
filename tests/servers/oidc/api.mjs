// An API that takes the provider's access tokens, and tells what it was asked.

import { randomBytes } from 'node:crypto';

import { calculateJwkThumbprint, createLocalJWKSet, EmbeddedJWK, jwtVerify } from 'jose';

import { sha256 } from './gate.mjs';
import { grantLives, keys } from './provider.mjs';
import { note, settings } from './state.mjs';

const rejected = new Map(); // SHA-256 of a token -> how often it is still refused
const proofs = new Set();
const nonces = new Map();

export const reject = (hash, times = Infinity) => rejected.set(hash, times ?? Infinity);
export const acceptAll = () => rejected.clear();
export const voidApiNonces = () => nonces.clear();

const publicKeys = () => keys.map(({ d, p, q, dp, dq, qi, ...key }) => key);

async function findJwt(issuer, value) {
  const { payload } = await jwtVerify(value, createLocalJWKSet({ keys: publicKeys() }), { issuer, typ: 'at+jwt' });
  if (!grantLives(payload.jti)) return undefined;
  const accountId = payload.sub === payload.client_id ? undefined : payload.sub;
  return { ...payload, accountId, clientId: payload.client_id, jkt: payload.cnf?.jkt };
}

/** The valid access token behind a value, or undefined. */
export async function findToken(provider, value) {
  if (typeof value !== 'string') return undefined;
  if (value.split('.').length === 3) return findJwt(provider.issuer, value).catch(() => undefined);
  const token = await provider.AccessToken.find(value) ?? await provider.ClientCredentials.find(value);
  return token && (!token.grantId || await provider.Grant.find(token.grantId)) ? token : undefined;
}

class Refused extends Error {
  constructor(status, error, description, extra = {}) {
    super(description);
    Object.assign(this, { status, error, extra });
  }
}

function challenge(scheme, { error, message, extra }) {
  const parts = { realm: 'api', ...(error && { error, error_description: message }), ...extra };
  if (scheme === 'DPoP') parts.algs = 'ES256';
  return `${scheme} ${Object.entries(parts).map(([name, value]) => `${name}="${value}"`).join(', ')}`;
}

function newNonce() {
  const nonce = randomBytes(16).toString('base64url');
  const ttl = settings.api_dpop_nonce === 'fresh' ? settings.dpop_nonce_ttl : 60;
  nonces.set(nonce, Date.now() + ttl * 1000);
  return nonce;
}

async function checkProof(request, value, token, base) {
  const wrong = (why) => new Refused(401, 'invalid_dpop_proof', why);
  const proof = request.headers.dpop;
  if (!proof) throw wrong('no proof');
  const { payload, protectedHeader } = await jwtVerify(proof, EmbeddedJWK, { typ: 'dpop+jwt' })
    .catch((error) => { throw wrong(error.message); });
  if (settings.api_dpop_nonce !== 'off' && !((nonces.get(payload.nonce) ?? 0) > Date.now())) {
    throw new Refused(401, 'use_dpop_nonce', 'a nonce is needed');
  }
  const htu = new URL(request.url, base);
  if (payload.htm !== request.method) throw wrong(`htm is ${payload.htm}`);
  if (payload.htu !== htu.origin + htu.pathname) throw wrong(`htu is ${payload.htu}`);
  if (payload.ath !== Buffer.from(sha256(value), 'hex').toString('base64url')) throw wrong('ath');
  if (!payload.nonce && Math.abs(Date.now() / 1000 - payload.iat) > 300) throw wrong('iat');
  if (proofs.has(payload.jti)) throw wrong('jti was used before');
  proofs.add(payload.jti);
  if (await calculateJwkThumbprint(protectedHeader.jwk) !== token.jkt) throw wrong('another key');
}

function refuseByOrder(hash) {
  const left = rejected.get(hash) ?? 0;
  if (left <= 0 && !settings.api_reject) return;
  if (left > 0) rejected.set(hash, left - 1);
  throw new Refused(401, 'invalid_token', 'refused by order of the test');
}

async function authorize(provider, request, base) {
  const [scheme, value] = (request.headers.authorization ?? '').split(' ');
  if (!value) throw new Refused(401);
  const { record } = request;
  record.token_sha256 = sha256(value);
  refuseByOrder(record.token_sha256);
  const token = await findToken(provider, value);
  if (!token) throw new Refused(401, 'invalid_token', 'unknown, expired or revoked');
  Object.assign(record, { sub: token.accountId ?? token.clientId, client_id: token.clientId });
  if (Boolean(token.jkt) !== (scheme.toLowerCase() === 'dpop')) {
    throw new Refused(401, 'invalid_token', `not a ${scheme} token`);
  }
  if (token.jkt) await checkProof(request, value, token, base);
  if (settings.api_audience && token.aud !== settings.api_audience) {
    throw new Refused(401, 'invalid_token', `audience is ${token.aud}`);
  }
  const wanted = new URL(request.url, base).searchParams.get('require_scope');
  if (wanted && !(token.scope ?? '').split(' ').includes(wanted)) {
    throw new Refused(403, 'insufficient_scope', `needs ${wanted}`, { scope: wanted });
  }
  return { token, scheme, value };
}

function describe(request, { token, scheme, value }, base) {
  const url = new URL(request.url, base);
  return {
    sub: token.accountId ?? token.clientId,
    client_id: token.clientId,
    aud: token.aud ?? null,
    scope: token.scope ?? null,
    jkt: token.jkt ?? null,
    token_sha256: sha256(value),
    method: request.method,
    path: url.pathname,
    query: url.search,
    headers: { ...request.headers, authorization: `${scheme} ***` },
    body_sha256: sha256(request.raw),
    body_length: request.raw.length,
  };
}

/** Answers like the API does; `base` is its origin. */
export async function answer(provider, base, request, response) {
  const wantsNonce = settings.api_dpop_nonce !== 'off' && 'dpop' in request.headers;
  if (wantsNonce) response.setHeader('DPoP-Nonce', newNonce());
  response.setHeader('Content-Type', 'application/json');
  try {
    const allowed = await authorize(provider, request, base);
    response.end(JSON.stringify(describe(request, allowed, base)));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    const scheme = 'dpop' in request.headers ? 'DPoP' : 'Bearer';
    response.statusCode = error.status;
    response.setHeader('WWW-Authenticate', challenge(scheme, error));
    note('api.refused', { path: request.url, status: error.status, error: error.error, detail: error.message });
    response.end(JSON.stringify({ error: error.error ?? 'unauthorized' }));
  }
}
