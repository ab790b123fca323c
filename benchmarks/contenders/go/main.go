// A cached GetOrderDetails in Go, on grpc-go: what Tandem's query server does for it, and nothing else.
//
// It takes the order's id from the request, looks the entry up in memcached, checks that it was stored for this key, and
// answers with it and with the token of the view's position. No message is decoded or made: the answer's bytes are those of
// the entry, as in Tandem. It is told once what Tandem follows all the time: what the keys begin with, and the token. There is
// no database behind it, no metrics, no admission: a miss is an error.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	timeout  = 5 * time.Second
	idBytes  = 16
	macTag   = 2<<3 | 1 // CacheEntry's fixed64 `mac`
	macBytes = 8
	// Of GetOrderDetailsResponse: `order_details` has the tag of CacheEntry's `value`.
	valueTag = 1<<3 | 2
	asOf     = protowire.Number(2)
)

var (
	errMissing = errors.New("there is no such entry")
	errStrange = errors.New("memcached answers with what it was not asked for")
)

// A way to ask memcached for one entry; errMissing where there is none.
type store interface {
	get(key string) ([]byte, error)
}

type server struct {
	store  store
	prefix string
	asOf   []byte // the answer's field, encoded
}

func (s *server) getOrderDetails(request []byte) ([]byte, error) {
	key, err := s.key(request)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	signed, err := s.store.get(key)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	entry := unsigned(key, signed)
	if len(entry) == 0 || entry[0] != valueTag {
		return nil, status.Error(codes.Unavailable, "the entry was not stored for its key, or holds no value")
	}
	answer := make([]byte, 0, len(entry)+len(s.asOf))
	return append(append(answer, entry...), s.asOf...), nil
}

// The entry's key: its prefix, and the 32 digits of the request's first field.
func (s *server) key(request []byte) (string, error) {
	for len(request) > 0 {
		number, kind, length := protowire.ConsumeTag(request)
		if length < 0 {
			return "", protowire.ParseError(length)
		}
		request = request[length:]
		if number == 1 && kind == protowire.BytesType {
			text, length := protowire.ConsumeBytes(request)
			if length < 0 {
				return "", protowire.ParseError(length)
			}
			digits := strings.ReplaceAll(string(text), "-", "")
			var id [idBytes]byte
			if decoded, err := hex.Decode(id[:], []byte(digits[:min(len(digits), 2*idBytes)])); err != nil || decoded != idBytes {
				return "", errors.New("order_id is no UUID")
			}
			return s.prefix + digits, nil
		}
		length = protowire.ConsumeFieldValue(number, kind, request)
		if length < 0 {
			return "", protowire.ParseError(length)
		}
		request = request[length:]
	}
	return "", errors.New("order_id is required")
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

// The entry without its signature, a checksum of key and entry; nil where it is another one.
func unsigned(key string, signed []byte) []byte {
	size := len(signed) - 1 - macBytes
	if size < 0 || signed[size] != macTag {
		return nil
	}
	sum := crc32.Update(crc32.ChecksumIEEE([]byte(key)), crc32.IEEETable, signed[:size])
	if binary.LittleEndian.Uint64(signed[size+1:]) != uint64(sum) {
		return nil
	}
	return signed[:size]
}

// gomemcache as it comes: it keeps two connections, and makes one for each call beyond those.
type stock struct{ client *memcache.Client }

func (s stock) get(key string) ([]byte, error) {
	item, err := s.client.Get(key)
	if err == memcache.ErrCacheMiss {
		return nil, errMissing
	}
	if err != nil {
		return nil, err
	}
	return item.Value, nil
}

type connection struct {
	net.Conn
	reader *bufio.Reader
	line   []byte
}

func dial(address string) (*connection, error) {
	socket, err := net.DialTimeout("tcp", address, timeout)
	if err != nil {
		return nil, err
	}
	return &connection{Conn: socket, reader: bufio.NewReaderSize(socket, 1<<16)}, nil
}

func (c *connection) ask(keys ...string) error {
	c.line = append(c.line[:0], "get"...)
	for _, key := range keys {
		c.line = append(append(c.line, ' '), key...)
	}
	_, err := c.Write(append(c.line, "\r\n"...))
	return err
}

// The next entry of an answer: its key is empty after the last one.
func (c *connection) next() (key string, value []byte, err error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return "", nil, err
	}
	text := strings.TrimRight(string(line), "\r\n")
	if text == "END" {
		return "", nil, nil
	}
	words := strings.Split(text, " ")
	if len(words) != 4 || words[0] != "VALUE" {
		return "", nil, errStrange
	}
	size, err := strconv.Atoi(words[3])
	if err != nil || size < 0 || size > 1<<20 {
		return "", nil, errStrange
	}
	value = make([]byte, size+2)
	if _, err := io.ReadFull(c.reader, value); err != nil {
		return "", nil, err
	}
	return words[1], value[:size], nil
}

// Connections of which each call has one for itself, and gives it back.
type pool struct {
	address string
	idle    chan *connection
}

func (p *pool) get(key string) ([]byte, error) {
	var it *connection
	select {
	case it = <-p.idle:
	default:
		var err error
		if it, err = dial(p.address); err != nil {
			return nil, err
		}
	}
	value, err := it.one(key)
	if err != nil && err != errMissing {
		it.Close()
		return nil, err
	}
	select {
	case p.idle <- it:
	default:
		it.Close()
	}
	return value, err
}

func (c *connection) one(key string) ([]byte, error) {
	if err := c.ask(key); err != nil {
		return nil, err
	}
	found, value, err := c.next()
	if err != nil {
		return nil, err
	}
	if found == "" {
		return nil, errMissing
	}
	if end, _, err := c.next(); err != nil || end != "" || found != key {
		return nil, errStrange
	}
	return value, nil
}

// A few connections that each take all calls that wait, and ask for them at once.
type together struct{ wanted chan *want }

type want struct {
	key   string
	value []byte
	err   error
	done  chan struct{}
}

func (t *together) get(key string) ([]byte, error) {
	it := &want{key: key, done: make(chan struct{})}
	t.wanted <- it
	<-it.done
	return it.value, it.err
}

func (t *together) serve(it *connection, most int) {
	keys := make([]string, 0, most)
	for first := range t.wanted {
		waiting := map[string][]*want{first.key: {first}}
		keys = append(keys[:0], first.key)
	gather:
		for len(keys) < most {
			select {
			case another := <-t.wanted:
				if waiting[another.key] == nil {
					keys = append(keys, another.key)
				}
				waiting[another.key] = append(waiting[another.key], another)
			default:
				break gather
			}
		}
		err := it.ask(keys...)
		for err == nil {
			var key string
			var value []byte
			if key, value, err = it.next(); err != nil || key == "" {
				break
			}
			for _, each := range waiting[key] {
				each.value = value
			}
		}
		for _, all := range waiting {
			for _, each := range all {
				if each.err = err; err == nil && each.value == nil {
					each.err = errMissing
				}
				close(each.done)
			}
		}
		if err != nil {
			log.Fatal(err)
		}
	}
}

func newStore(kind, address string, connections int) (store, error) {
	switch kind {
	case "stock":
		client := memcache.New(address)
		client.Timeout = timeout
		return stock{client}, nil
	case "pool":
		return &pool{address, make(chan *connection, connections)}, nil
	case "together":
		all := &together{make(chan *want, 256)}
		for n := 0; n < connections; n++ {
			it, err := dial(address)
			if err != nil {
				return nil, err
			}
			go all.serve(it, 64)
		}
		return all, nil
	}
	return nil, errors.New("--store is stock, pool or together")
}

// Hands bytes through.
type raw struct{}

func (raw) Marshal(message interface{}) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message interface{}) error {
	*message.(*[]byte) = data
	return nil
}

func (raw) String() string { return "proto" }

func handle(self interface{}, _ context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor) (interface{}, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	answer, err := self.(*server).getOrderDetails(request)
	return &answer, err
}

func main() {
	port := flag.Int("port", 0, "where it listens")
	node := flag.String("memcached", "", "host:port")
	prefix := flag.String("prefix", "", "what keys of entries begin with")
	token := flag.String("as-of", "", "the token that each answer has")
	kind := flag.String("store", "pool", "stock: gomemcache as it comes; pool: a connection a call; together: calls that wait share one")
	connections := flag.Int("connections", 64, "to memcached")
	flag.Parse()

	store, err := newStore(*kind, *node, *connections)
	if err != nil {
		log.Fatal(err)
	}
	field := protowire.AppendString(protowire.AppendTag(nil, asOf, protowire.BytesType), *token)
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(*port)))
	if err != nil {
		log.Fatal(err)
	}
	// The option is deprecated in favour of one that is not there yet.
	service := grpc.NewServer(grpc.CustomCodec(raw{}))
	service.RegisterService(&grpc.ServiceDesc{
		ServiceName: "commerce.query.v1.QueryService",
		HandlerType: (*interface{})(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "GetOrderDetails", Handler: handle}},
	}, &server{store, *prefix, field})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		service.Stop()
	}()
	if err := service.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
