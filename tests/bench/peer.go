// A peer of `make bench`: a plain net/http server, with nothing but Go's standard library, that answers from memory what
// the daemon answers. It makes and checks session tokens and the containers' token; it has no gate and no limits.
package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const (
	tokenPath     = "/latest/api/token"
	rolesPath     = "/latest/meta-data/iam/security-credentials/"
	containerPath = "/v1/credentials"
	googlePath    = "/computeMetadata/v1/instance/service-accounts/default/token"
	googleToken   = `{"access_token":"ya29.gggggggggggggggggggggggggggggggggggggggg","expires_in":3599,"token_type":"Bearer"}`
	document      = `{
  "Code" : "Success",
  "LastUpdated" : "2026-11-24T12:00:00Z",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "ASIAUSER000000000000",
  "SecretAccessKey" : "ssssssssssssssssssssssssssssssssssssssss",
  "Token" : "tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt",
  "Expiration" : "2026-11-24T18:00:00Z"
}`
)

// -- the server: the same work as ours, without its gate

var key = []byte("0123456789abcdef0123456789abcdef")

func mac(payload []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(payload)
	return h.Sum(nil)[:24]
}

func valid(token string) bool {
	raw, err := base64.URLEncoding.DecodeString(token)
	if err != nil || len(raw) != 38 {
		return false
	}
	return hmac.Equal(mac(raw[:14]), raw[14:]) && int64(binary.BigEndian.Uint64(raw)) > time.Now().Unix()
}

func serve(port int) error {
	plain := func(w http.ResponseWriter, body string) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		io.WriteString(w, body)
	}
	get := func(w http.ResponseWriter, r *http.Request, body string) {
		if !valid(r.Header.Get("X-aws-ec2-metadata-token")) {
			w.WriteHeader(401)
			return
		}
		plain(w, body)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "PUT " + tokenPath:
			ttl, err := strconv.Atoi(r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds"))
			if err != nil || ttl < 1 || ttl > 21600 {
				w.WriteHeader(400)
				return
			}
			payload := make([]byte, 14)
			binary.BigEndian.PutUint64(payload, uint64(time.Now().Unix()+int64(ttl)))
			rand.Read(payload[8:])
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", strconv.Itoa(ttl))
			plain(w, base64.URLEncoding.EncodeToString(append(payload, mac(payload)...)))
		case "GET " + rolesPath:
			get(w, r, "role")
		case "GET " + rolesPath + "role":
			get(w, r, document)
		case "GET " + containerPath:
			if !hmac.Equal([]byte(r.Header.Get("Authorization")), []byte("token")) {
				w.WriteHeader(401)
				return
			}
			plain(w, document)
		case "GET " + googlePath:
			if r.Header.Get("Metadata-Flavor") != "Google" {
				w.WriteHeader(403)
				return
			}
			plain(w, googleToken)
		default:
			w.WriteHeader(404)
		}
	})
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler}
	server.SetKeepAlivesEnabled(false)
	return server.Serve(listener)
}

func main() {
	port := flag.Int("port", 0, "")
	flag.Parse()
	if err := serve(*port); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
