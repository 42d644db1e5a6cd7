// A producer and a reader of bundles on go-jose, written from FORMAT.md. See ../README.md for the protocol.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

type request struct {
	Claims     json.RawMessage   `json:"claims"`
	Signer     json.RawMessage   `json:"signer"`
	Recipients []json.RawMessage `json:"recipients"`
	Form       string            `json:"form"`
	Direct     bool              `json:"direct"`
	Bundle     string            `json:"bundle"`
	Key        json.RawMessage   `json:"key"`
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func key(raw json.RawMessage) (jose.JSONWebKey, string) {
	var out jose.JSONWebKey
	fail(out.UnmarshalJSON(raw))
	var head struct{ Kty string }
	fail(json.Unmarshal(raw, &head))
	return out, head.Kty
}

var algs = map[string]jose.KeyAlgorithm{"EC": jose.ECDH_ES_A256KW, "RSA": jose.RSA_OAEP_256, "oct": jose.A256KW}

func signAlg(kty string) jose.SignatureAlgorithm {
	if kty == "OKP" {
		return jose.EdDSA
	}
	return jose.ES256
}

func seal(r request) string {
	signer, kty := key(r.Signer)
	options := (&jose.SignerOptions{}).WithType("credbundle+jwt").WithHeader("kid", signer.KeyID)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: signAlg(kty), Key: signer.Key}, options)
	fail(err)
	signedObject, err := s.Sign(r.Claims)
	fail(err)
	signed, err := signedObject.CompactSerialize()
	fail(err)
	outer := (&jose.EncrypterOptions{}).WithType("credbundle+jwe").WithContentType("credbundle+jwt")
	var recipients []jose.Recipient
	for _, raw := range r.Recipients {
		k, kty := key(raw)
		alg := algs[kty]
		if r.Direct {
			alg = jose.ECDH_ES
		}
		recipients = append(recipients, jose.Recipient{Algorithm: alg, Key: k.Key, KeyID: k.KeyID})
	}
	var e jose.Encrypter
	if len(recipients) == 1 {
		e, err = jose.NewEncrypter(jose.A256GCM, recipients[0], outer)
	} else {
		e, err = jose.NewMultiEncrypter(jose.A256GCM, recipients, outer)
	}
	fail(err)
	sealed, err := e.Encrypt([]byte(signed))
	fail(err)
	if r.Form == "compact" {
		out, err := sealed.CompactSerialize()
		fail(err)
		return out
	}
	return sealed.FullSerialize()
}

func open(r request) string {
	mine, _ := key(r.Key)
	signer, kty := key(r.Signer)
	keyAlgs := []jose.KeyAlgorithm{jose.ECDH_ES_A256KW, jose.ECDH_ES, jose.RSA_OAEP_256, jose.A256KW}
	encs := []jose.ContentEncryption{jose.A256GCM}
	sealed, err := jose.ParseEncrypted(r.Bundle, keyAlgs, encs)
	fail(err)
	var plain []byte
	if strings.Contains(r.Bundle, "\"recipients\"") {
		_, _, plain, err = sealed.DecryptMulti(mine.Key)
	} else {
		plain, err = sealed.Decrypt(mine.Key)
	}
	fail(err)
	signed, err := jose.ParseSigned(string(plain), []jose.SignatureAlgorithm{signAlg(kty)})
	fail(err)
	claims, err := signed.Verify(signer.Key)
	fail(err)
	return string(claims)
}

func main() {
	raw, err := io.ReadAll(os.Stdin)
	fail(err)
	var r request
	fail(json.Unmarshal(raw, &r))
	if os.Args[1] == "seal" {
		fmt.Print(seal(r))
	} else {
		fmt.Print(open(r))
	}
}
