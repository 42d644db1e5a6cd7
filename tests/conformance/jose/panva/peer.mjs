// A producer and a reader of bundles on panva/jose, written from FORMAT.md. See ../README.md for the protocol.
import * as jose from 'jose'
import { readFileSync } from 'node:fs'

const request = JSON.parse(readFileSync(0, 'utf8'))
const text = (value) => new TextEncoder().encode(value)
const algOf = (jwk) => ({ EC: 'ECDH-ES+A256KW', OKP: 'ECDH-ES+A256KW', RSA: 'RSA-OAEP-256', oct: 'A256KW' })[jwk.kty]
const outer = { typ: 'credbundle+jwe', cty: 'credbundle+jwt', enc: 'A256GCM' }
const importKey = (jwk, alg) => jose.importJWK({ ...jwk, alg: undefined, use: undefined }, alg)

async function seal({ claims, signer, recipients, form, direct }) {
  const alg = signer.kty === 'OKP' ? 'Ed25519' : 'ES256'
  const signed = await new jose.CompactSign(text(JSON.stringify(claims)))
    .setProtectedHeader({ alg, typ: 'credbundle+jwt', kid: signer.kid })
    .sign(await importKey(signer, alg))
  const keys = await Promise.all(recipients.map(async (jwk) => ({ kid: jwk.kid, alg: direct ? 'ECDH-ES' : algOf(jwk), key: await importKey(jwk, algOf(jwk)) })))
  if (form === 'compact') {
    const { kid, alg, key } = keys[0]
    return new jose.CompactEncrypt(text(signed)).setProtectedHeader({ ...outer, alg, kid }).encrypt(key)
  }
  if (form === 'flattened') {
    const { kid, alg, key } = keys[0]
    return JSON.stringify(await new jose.FlattenedEncrypt(text(signed)).setProtectedHeader(outer).setUnprotectedHeader({ alg, kid }).encrypt(key))
  }
  const jwe = new jose.GeneralEncrypt(text(signed)).setProtectedHeader(outer)
  for (const { kid, alg, key } of keys) jwe.addRecipient(key).setUnprotectedHeader({ alg, kid })
  return JSON.stringify(await jwe.encrypt())
}

async function open({ bundle, key, signer }) {
  const mine = await importKey(key, algOf(key))
  const options = { keyManagementAlgorithms: ['ECDH-ES+A256KW', 'ECDH-ES', 'RSA-OAEP-256', 'A256KW'], contentEncryptionAlgorithms: ['A256GCM'] }
  let plaintext
  if (!bundle.startsWith('{')) ({ plaintext } = await jose.compactDecrypt(bundle, mine, options))
  else {
    const jwe = JSON.parse(bundle)
    if (jwe.recipients) ({ plaintext } = await jose.generalDecrypt({ ...jwe, recipients: jwe.recipients.filter((r) => r.header.kid === key.kid) }, mine, options))
    else ({ plaintext } = await jose.flattenedDecrypt(jwe, mine, options))
  }
  const alg = signer.kty === 'OKP' ? 'Ed25519' : 'ES256'
  const { payload } = await jose.compactVerify(plaintext, await importKey(signer, alg), { algorithms: [alg] })
  return new TextDecoder().decode(payload)
}

process.stdout.write(await (process.argv[2] === 'seal' ? seal(request) : open(request)))
