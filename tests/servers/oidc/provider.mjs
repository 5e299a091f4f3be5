// The real oidc-provider, configured so that everything works without a human.

import { randomBytes } from 'node:crypto';

import { decodeJwt, decodeProtectedHeader, exportJWK, generateKeyPair, importJWK, SignJWT } from 'jose';
import Provider, { errors, interactionPolicy } from 'oidc-provider';
import instance from 'oidc-provider/lib/helpers/weak_cache.js';

import { Adapter, has } from './store.mjs';
import { note, settings } from './state.mjs';

const PROFILE = ['name', 'given_name', 'family_name', 'preferred_username', 'locale', 'updated_at'];
export const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
export const JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const dPoPSecret = randomBytes(32);

// ---- keys

let serial = 0;
export let keys = [];

async function newKey(alg) {
  serial += 1;
  const { privateKey } = await generateKeyPair(alg, { extractable: true });
  return { ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg.toLowerCase()}-${serial}` };
}

export async function rotateKeys({ keep = true } = {}) {
  const fresh = await Promise.all([newKey('RS256'), newKey('ES256')]);
  keys = [...fresh, ...(keep ? keys : [])];
  return fresh.map(({ kid }) => kid);
}

/** Any JWT, signed with the key that the provider signs with now; `none` and unknown keys on demand. */
export async function sign(claims, { alg = 'RS256', kid, unknownKey = false, ...header } = {}) {
  if (alg === 'none') {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    return `${part({ alg, ...header })}.${part(claims)}.`;
  }
  const jwk = unknownKey ? await newKey(alg) : keys.find((key) => key.alg === alg);
  return new SignJWT(claims)
    .setProtectedHeader({ alg, kid: kid ?? jwk.kid, ...header })
    .sign(await importJWK(jwk, alg));
}

export function resign(token, { claims = {}, header = {} }) {
  const merged = { ...decodeJwt(token), ...claims };
  for (const [name, value] of Object.entries(merged)) if (value === null) delete merged[name];
  const { alg, typ } = decodeProtectedHeader(token);
  return sign(merged, { alg, ...(typ && { typ }), ...header });
}

// ---- accounts

function claimsOf(sub) {
  const name = sub.charAt(0).toUpperCase() + sub.slice(1);
  return {
    sub,
    name: `${name} Example`,
    given_name: name,
    family_name: 'Example',
    preferred_username: sub,
    email: `${sub}@example.com`,
    email_verified: true,
    ...settings.accounts[sub],
  };
}

async function findAccount(_ctx, sub) {
  return {
    accountId: sub,
    claims: async (use) => ({ ...claimsOf(sub), ...(use === 'id_token' ? settings.id_token_claims : {}) }),
  };
}

// ---- DPoP nonces that change with every answer

const freshNonces = {
  issued: new Map(),
  nextChallenge() {
    const nonce = randomBytes(16).toString('base64url');
    this.issued.set(nonce, Date.now() + settings.dpop_nonce_ttl * 1000);
    return nonce;
  },
  checkChallenge(nonce) {
    return (this.issued.get(nonce) ?? 0) > Date.now();
  },
};

export function voidNonces() {
  freshNonces.issued.clear();
  randomBytes(32).copy(dPoPSecret);
}

// ---- resources and access tokens

const grantOfToken = new Map(); // jti of a JWT access token -> its grant, which alone can be revoked

export const grantLives = (jti) => !grantOfToken.get(jti) || has('Grant', grantOfToken.get(jti));

async function getResourceServerInfo(_ctx, indicator) {
  const resource = settings.resources[indicator];
  if (!resource) throw new errors.InvalidTarget();
  return {
    scope: resource.scope,
    audience: resource.audience ?? indicator,
    accessTokenTTL: resource.ttl,
    accessTokenFormat: resource.format ?? 'jwt',
    jwt: { sign: { alg: resource.alg ?? 'RS256' } },
  };
}

// ---- token exchange (RFC 8693) and JWT bearer (RFC 7523) with one of our own access tokens

function exchange(provider, findToken) {
  return async (ctx) => {
    const { params, client } = ctx.oidc;
    const subject = await findToken(params.subject_token ?? params.assertion);
    if (!subject?.accountId) throw new errors.InvalidGrant('subject token is not valid');
    const resource = [params.resource ?? params.audience ?? []].flat()[0];
    const token = new provider.AccessToken({
      accountId: subject.accountId,
      client,
      grantId: subject.grantId,
      gty: params.grant_type,
      scope: params.scope,
    });
    if (resource) {
      token.resourceServer = new provider.ResourceServer(resource, await getResourceServerInfo(ctx, resource));
    }
    ctx.body = {
      access_token: await token.save(),
      issued_token_type: 'urn:ietf:params:oauth:token-type:access_token',
      token_type: token.tokenType,
      expires_in: token.expiration,
      scope: params.scope,
    };
  };
}

// ---- signing in without a human

async function grantEverything(provider, { params, accountId }) {
  const denied = new Set(settings.denied_scopes);
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  const scopes = (params.scope ?? '').split(' ').filter(Boolean);
  grant.addOIDCScope(scopes);
  grant.rejectOIDCScope(scopes.filter((scope) => denied.has(scope)));
  if (params.claims) {
    const { id_token: idToken = {}, userinfo = {} } = JSON.parse(params.claims);
    grant.addOIDCClaims([...Object.keys(idToken), ...Object.keys(userinfo)]);
  }
  for (const resource of [params.resource ?? []].flat()) {
    const known = (settings.resources[resource]?.scope ?? '').split(' ').filter((scope) => scopes.includes(scope));
    grant.addResourceScope(resource, known);
    grant.rejectResourceScope(resource, known.filter((scope) => denied.has(scope)));
  }
  if (params.authorization_details) {
    for (const detail of JSON.parse(params.authorization_details)) grant.addRar(detail);
  }
  return grant.save();
}

export async function interact(provider, request, response) {
  if (settings.interaction_error) {
    return provider.interactionFinished(request, response, settings.interaction_error);
  }
  const { params, prompt, session } = await provider.interactionDetails(request, response);
  const asked = params.account ?? params.login_hint;
  const accountId = prompt.name === 'login' ? (asked ?? settings.account) : session.accountId;
  const acr = settings.acr ?? params.acr_values?.split(' ')[0];
  const login = prompt.name === 'login' ? { login: { accountId, acr, amr: settings.amr } } : {};
  const consent = { grantId: await grantEverything(provider, { params, accountId }) };
  return provider.interactionFinished(request, response, { ...login, consent });
}

/** Another account than the one in the session has to sign in, as if the user had chosen to. */
function policy() {
  const { Check, base } = interactionPolicy;
  const prompts = base();
  const another = ({ oidc }) =>
    Boolean(oidc.params.account && oidc.session.accountId !== oidc.params.account && !oidc.result?.login);
  prompts.get('login').checks.add(new Check('account', 'another account', 'login_required', another));
  return prompts;
}

// ---- configuration

function refreshTokenWanted(_ctx, client, source) {
  if (!client.grantTypeAllowed('refresh_token') || settings.refresh_tokens === 'never') return false;
  return settings.refresh_tokens === 'always' || source.scopes.has('offline_access');
}

function page(ctx, form) {
  const yes = '<input type="hidden" name="logout" value="yes"/></form>';
  ctx.body = `<!DOCTYPE html><title>Signing out</title>${form.replace('</form>', yes)}
<script>document.forms[0].submit()</script>`;
}

function configuration() {
  const scopes = Object.values(settings.resources).flatMap(({ scope }) => scope.split(' '));
  const fromSettings = (name) => () => settings[name];
  return {
    adapter: Adapter,
    jwks: { keys },
    clockTolerance: 0,
    conformIdTokenClaims: false,
    acrValues: ['urn:example:basic', 'urn:example:mfa', 'urn:example:hardware'],
    claims: {
      openid: ['sub', ...Object.keys(settings.id_token_claims)],
      profile: PROFILE,
      email: ['email', 'email_verified'],
      acr: null, amr: null, auth_time: null, iss: null, sid: null,
    },
    scopes: [...new Set(['openid', 'offline_access', 'profile', 'email', 'read', 'write', ...scopes])],
    extraParams: ['account', 'audience'],
    cookies: { keys: ['not a secret'] },
    findAccount,
    interactions: { policy: policy(), url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
    rotateRefreshToken: () => settings.rotate,
    issueRefreshToken: refreshTokenWanted,
    expiresWithSession: (_ctx, source) =>
      settings.expires_with_session && !source.scopes.has('offline_access'),
    pkce: { required: () => true },
    renderError: (ctx, out, error) => {
      ctx.type = 'text';
      ctx.body = `${out.error}: ${out.error_description ?? ''} ${error.error_detail ?? ''}\n`;
    },
    enabledJWA: {
      idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256'],
      dPoPSigningAlgValues: ['ES256', 'ES384', 'RS256', 'PS256', 'Ed25519', 'EdDSA'],
      clientAuthSigningAlgValues: ['HS256', 'RS256', 'PS256', 'ES256', 'Ed25519', 'EdDSA'],
    },
    ttl: {
      AccessToken: (_ctx, token) => token.resourceServer?.accessTokenTTL ?? settings.access_token_ttl,
      ClientCredentials: (_ctx, token) => token.resourceServer?.accessTokenTTL ?? settings.client_token_ttl,
      AuthorizationCode: fromSettings('code_ttl'),
      IdToken: fromSettings('id_token_ttl'),
      RefreshToken: fromSettings('refresh_token_ttl'),
      DeviceCode: 600,
      Grant: 30 * 86400,
      Interaction: 3600,
      Session: 14 * 86400,
    },
    // Outgoing requests refuse loopback by way of their dispatcher.
    fetch: (url, { dispatcher: _, ...options }) => globalThis.fetch(url, options),
    features: {
      devInteractions: { enabled: false },
      backchannelLogout: { enabled: true },
      claimsParameter: { enabled: true },
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      dPoP: {
        enabled: true,
        nonceSecret: settings.dpop_nonce === 'off' ? undefined : dPoPSecret,
        requireNonce: () => settings.dpop_nonce === 'required' || settings.dpop_nonce === 'fresh',
      },
      introspection: { enabled: true, allowedPolicy: () => true },
      pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: settings.require_par },
      requestObjects: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_ctx, _client, oneOf) => settings.default_resource ?? oneOf,
        useGrantedResource: fromSettings('use_granted_resource'),
        getResourceServerInfo,
      },
      revocation: { enabled: true },
      richAuthorizationRequests: {
        enabled: true,
        types: { payment: { validate() {} }, account: { validate() {} } },
        authorizationDetailsForGrantSource: (ctx) => ctx.oidc.grant.rar,
        authorizationDetailsForAccessToken: (_ctx, _token, source) => source?.rar,
        authorizationDetailsForIntrospection: (_ctx, token) => token.rar,
      },
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: page,
        postLogoutSuccessSource: (ctx) => {
          ctx.body = 'signed out';
        },
      },
      userinfo: { enabled: true },
    },
  };
}

function listenTo(provider) {
  const failed = (name) => (ctx, error) => {
    const { record } = ctx.req;
    const detail = error.error_detail ?? error.error_description ?? error.message;
    const replay = detail === 'refresh token already used';
    Object.assign(record, { error: error.error ?? error.message, detail, ...(replay && { replay }) });
    if (ctx.oidc?.client) record.client_id = ctx.oidc.client.clientId;
    note(name, {
      path: ctx.path,
      client_id: ctx.oidc?.client?.clientId,
      error: error.error ?? error.message,
      description: error.error_description,
      detail,
      ...(name === 'server_error' && { stack: error.stack }),
    });
  };
  for (const name of ['authorization', 'grant', 'userinfo', 'introspection', 'revocation', 'end_session',
    'end_session_confirm', 'pushed_authorization_request', 'device_authorization', 'jwks', 'discovery']) {
    provider.on(`${name}.error`, failed(`${name}.error`));
  }
  provider.on('server_error', failed('server_error'));
  provider.on('grant.success', (ctx) => {
    const { client, entities } = ctx.oidc;
    ctx.req.record.client_id = client.clientId;
    ctx.req.record.grant_id = entities.Grant?.jti ?? null;
    ctx.req.record.sub = entities.Account?.accountId ?? null;
  });
  provider.on('grant.revoked', (_ctx, grantId) => note('grant.revoked', { grant_id: grantId }));
  provider.on('access_token.issued', (token) => grantOfToken.set(token.jti, token.grantId));
  provider.on('backchannel.success', (_ctx, client, sub, sid) =>
    note('backchannel.success', { client_id: client.clientId, sub, sid }));
  provider.on('backchannel.error', (_ctx, error, client, sub, sid) =>
    note('backchannel.error', { client_id: client.clientId, sub, sid, detail: error.message }));
}

export function build(issuer, findToken) {
  const provider = new Provider(issuer, configuration());
  if (settings.dpop_nonce === 'fresh') instance(provider).DPoPNonces = freshNonces;
  const also = ['audience', 'resource', 'scope', 'requested_token_type', 'requested_token_use'];
  const subject = ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type'];
  provider.registerGrantType(TOKEN_EXCHANGE, exchange(provider, findToken), [...subject, ...also], ['audience', 'resource']);
  provider.registerGrantType(JWT_BEARER, exchange(provider, findToken), ['assertion', ...also], ['audience', 'resource']);
  listenTo(provider);
  return provider;
}
