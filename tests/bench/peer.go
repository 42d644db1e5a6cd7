// The yardstick and the load of `make bench`, in one program with nothing but Go's standard library.
//
//	peer serve -port 0            a plain net/http server that answers the EC2 sequence from memory
//	peer load -url U -c 32 -seconds 5   closed loop: PUT token, GET role list, GET document, each on a new connection
//	peer load -url U -burst 512 -rounds 5   that many sequences at the same instant
//
// Both print one line of JSON.
package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tokenPath = "/latest/api/token"
	rolesPath = "/latest/meta-data/iam/security-credentials/"
	document  = `{
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
		default:
			w.WriteHeader(404)
		}
	})
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	fmt.Printf("{\"url\": \"http://%s\"}\n", listener.Addr())
	server := &http.Server{Handler: handler}
	server.SetKeepAlivesEnabled(false)
	return server.Serve(listener)
}

// -- the load: raw sockets, so that the client costs little

type load struct {
	address string
	dialer  net.Dialer
}

type sample struct {
	sequence time.Duration
	requests [3]time.Duration
	err      error
}

func (l *load) exchange(request []byte) ([]byte, time.Duration, error) {
	began := time.Now()
	conn, err := l.dialer.Dial("tcp", l.address)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	conn.SetDeadline(began.Add(10 * time.Second))
	if _, err = conn.Write(request); err != nil {
		return nil, 0, err
	}
	answer := make([]byte, 0, 2048)
	for {
		if len(answer) == cap(answer) {
			answer = append(answer, 0)[:len(answer)]
		}
		n, err := conn.Read(answer[len(answer):cap(answer)])
		answer = answer[:len(answer)+n]
		if whole(answer) {
			break
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, 0, err
		}
	}
	took := time.Since(began)
	head, body, found := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !found || !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
		return nil, took, errors.New("not 200: " + string(answer[:min(len(answer), 80)]))
	}
	return body, took, nil
}

// whole reports whether an answer has all of its body: a client does not wait for the end of the connection.
func whole(answer []byte) bool {
	head, body, found := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !found {
		return false
	}
	for _, line := range strings.Split(string(head), "\r\n")[1:] {
		name, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(name, "Content-Length") {
			length, err := strconv.Atoi(strings.TrimSpace(value))
			return err == nil && len(body) >= length
		}
	}
	return false
}

func (l *load) sequence() (s sample) {
	began := time.Now()
	head := "Host: " + l.address + "\r\nUser-Agent: Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux md/arch#x86_64\r\nAccept-Encoding: identity\r\n"
	token, took, err := l.exchange([]byte("PUT " + tokenPath + " HTTP/1.1\r\n" + head + "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n\r\n"))
	s.requests[0] = took
	if err != nil {
		s.err = err
		return
	}
	head += "x-aws-ec2-metadata-token: " + string(token) + "\r\n\r\n"
	role, took, err := l.exchange([]byte("GET " + rolesPath + " HTTP/1.1\r\n" + head))
	s.requests[1] = took
	if err != nil {
		s.err = err
		return
	}
	_, took, err = l.exchange([]byte("GET " + rolesPath + string(role) + " HTTP/1.1\r\n" + head))
	s.requests[2] = took
	s.err = err
	s.sequence = time.Since(began)
	return
}

type result struct {
	Sequences int                `json:"sequences"`
	Errors    int                `json:"errors"`
	Error     string             `json:"error,omitempty"`
	Seconds   float64            `json:"seconds"`
	Sequence  map[string]float64 `json:"sequence_ms"`
	Request   map[string]float64 `json:"request_ms"`
}

func quantiles(all []time.Duration) map[string]float64 {
	if len(all) == 0 {
		return nil
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(q float64) float64 {
		return float64(all[min(len(all)-1, int(q*float64(len(all))))].Microseconds()) / 1000
	}
	return map[string]float64{"p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": at(1)}
}

func gather(samples []sample, seconds float64) result {
	out := result{Seconds: seconds}
	var sequences, requests []time.Duration
	for _, s := range samples {
		if s.err != nil {
			out.Errors++
			out.Error = s.err.Error()
			continue
		}
		out.Sequences++
		sequences = append(sequences, s.sequence)
		requests = append(requests, s.requests[:]...)
	}
	out.Sequence, out.Request = quantiles(sequences), quantiles(requests)
	return out
}

func (l *load) loop(concurrency int, span time.Duration, most int) result {
	var lock sync.Mutex
	var all []sample
	var group sync.WaitGroup
	began := time.Now()
	ends := began.Add(span)
	for range concurrency {
		group.Add(1)
		go func() {
			defer group.Done()
			var mine []sample
			for time.Now().Before(ends) && (most == 0 || len(mine) < most/concurrency) {
				mine = append(mine, l.sequence())
			}
			lock.Lock()
			all = append(all, mine...)
			lock.Unlock()
		}()
	}
	group.Wait()
	return gather(all, time.Since(began).Seconds())
}

func (l *load) burst(size, rounds int) result {
	var all []sample
	var busy time.Duration
	for range rounds {
		samples := make([]sample, size)
		start := make(chan struct{})
		var group sync.WaitGroup
		for i := range size {
			group.Add(1)
			go func() {
				defer group.Done()
				<-start
				samples[i] = l.sequence()
			}()
		}
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		close(start)
		group.Wait()
		busy += time.Since(began)
		all = append(all, samples...)
	}
	return gather(all, busy.Seconds())
}

func run() error {
	if len(os.Args) < 2 {
		return errors.New("usage: peer serve|load")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	switch os.Args[1] {
	case "serve":
		port := flags.Int("port", 0, "")
		flags.Parse(os.Args[2:])
		return serve(*port)
	case "load":
		target := flags.String("url", "", "")
		concurrency := flags.Int("c", 1, "")
		seconds := flags.Float64("seconds", 5, "")
		most := flags.Int("sequences", 0, "at most; 0: no limit")
		burst := flags.Int("burst", 0, "")
		rounds := flags.Int("rounds", 5, "")
		flags.Parse(os.Args[2:])
		parsed, err := url.Parse(*target)
		if err != nil {
			return err
		}
		l := &load{address: parsed.Host, dialer: net.Dialer{Timeout: 10 * time.Second}}
		var r result
		if *burst > 0 {
			r = l.burst(*burst, *rounds)
		} else {
			r = l.loop(*concurrency, time.Duration(*seconds*float64(time.Second)), *most)
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return errors.New("usage: peer serve|load")
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
