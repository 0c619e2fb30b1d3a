// A TURN client made of Pion, for the tests of the relay: it does what it is told and prints a line of JSON for each
// thing that happened. What Pion itself says comes as lines {"event":"log"}. It ends with 0 when all of it happened.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"
)

// The longest that any single thing may take.
const patience = 20 * time.Second

var printing sync.Mutex

// tell prints one event with its values, given as names and values in turn.
func tell(event string, values ...any) {
	line := map[string]any{"event": event}
	for at := 0; at+1 < len(values); at += 2 {
		line[values[at].(string)] = values[at+1]
	}
	printing.Lock()
	defer printing.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(line)
}

// journal prints what Pion logs, and lets one wait for a line of it.
type journal struct {
	mutex  sync.Mutex
	lines  []string
	change chan struct{}
}

func (j *journal) NewLogger(string) logging.LeveledLogger { return j }

func (j *journal) say(level, text string) {
	tell("log", "level", level, "text", text)
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.lines = append(j.lines, text)
	close(j.change)
	j.change = make(chan struct{})
}

func (j *journal) wait(text string) error {
	late := time.After(patience)
	for {
		j.mutex.Lock()
		change := j.change
		for _, line := range j.lines {
			if strings.Contains(line, text) {
				j.mutex.Unlock()
				return nil
			}
		}
		j.mutex.Unlock()
		select {
		case <-change:
		case <-late:
			return fmt.Errorf("Pion never said %q", text)
		}
	}
}

func (j *journal) Trace(string)                 {}
func (j *journal) Tracef(string, ...any)        {}
func (j *journal) Debug(text string)            { j.say("debug", text) }
func (j *journal) Debugf(form string, v ...any) { j.say("debug", fmt.Sprintf(form, v...)) }
func (j *journal) Info(text string)             { j.say("info", text) }
func (j *journal) Infof(form string, v ...any)  { j.say("info", fmt.Sprintf(form, v...)) }
func (j *journal) Warn(text string)             { j.say("warning", text) }
func (j *journal) Warnf(form string, v ...any)  { j.say("warning", fmt.Sprintf(form, v...)) }
func (j *journal) Error(text string)            { j.say("error", text) }
func (j *journal) Errorf(form string, v ...any) { j.say("error", fmt.Sprintf(form, v...)) }

type options struct {
	server, transport, user, password, peer, what string
	messages                                      int
	refresh                                       bool
}

// connect gives a socket to the TURN server.
func connect(transport, server string) (net.PacketConn, error) {
	switch transport {
	case "udp":
		return net.ListenPacket("udp4", "127.0.0.1:0")
	case "tcp":
		stream, err := net.Dial("tcp", server)
		if err != nil {
			return nil, err
		}
		return turn.NewSTUNConn(stream), nil
	case "tls":
		stream, err := tls.Dial("tcp", server, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return nil, err
		}
		return turn.NewSTUNConn(stream), nil
	}
	return nil, fmt.Errorf("%q is no transport", transport)
}

// relay exchanges datagrams with a peer that sends everything back, first by Send indications, then by a channel;
// "from elsewhere" makes that peer send one from another port, for which there is no channel.
func relay(client *turn.Client, said *journal, given options) error {
	peer, err := net.ResolveUDPAddr("udp4", given.peer)
	if err != nil {
		return err
	}
	mapped, err := client.SendBindingRequest()
	if err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	tell("bound", "mapped", mapped.String())
	relayed, err := client.Allocate()
	if err != nil {
		return fmt.Errorf("allocate: %w", err)
	}
	tell("allocated", "relay", relayed.LocalAddr().String())
	if err = client.CreatePermission(peer); err != nil {
		return fmt.Errorf("permission: %w", err)
	}
	tell("permitted")
	for number := range given.messages {
		// Every length modulo four, as each has another padding on a stream.
		text := bytes.Repeat([]byte{byte(number)}, 100+number)
		if err = echoed(relayed, peer, text, peer.Port); err != nil {
			return err
		}
		if number == 0 {
			if err = said.wait("Channel binding successful"); err != nil {
				return err
			}
			tell("channel")
		}
	}
	tell("echoed", "messages", given.messages)
	if err = echoed(relayed, peer, []byte("from elsewhere"), 0); err != nil {
		return err
	}
	tell("indicated")
	if given.refresh {
		if err = said.wait("Updated lifetime"); err != nil {
			return err
		}
		tell("refreshed")
		if err = echoed(relayed, peer, []byte("after the refresh"), peer.Port); err != nil {
			return err
		}
	}
	if err = relayed.Close(); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	tell("released")
	return nil
}

// echoed sends text to peer and waits for it to come back from its IP, and from port unless that is 0.
func echoed(relayed net.PacketConn, peer *net.UDPAddr, text []byte, port int) error {
	if _, err := relayed.WriteTo(text, peer); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	_ = relayed.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, 2048)
	count, from, err := relayed.ReadFrom(got)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	source := from.(*net.UDPAddr)
	if !source.IP.Equal(peer.IP) || (port != 0 && source.Port != port) || (port == 0 && source.Port == peer.Port) {
		return fmt.Errorf("an answer came from %s", source)
	}
	if !bytes.Equal(got[:count], text) {
		return fmt.Errorf("%d bytes came back for %d", count, len(text))
	}
	return nil
}

// streams has a TCP allocation (RFC 6062): one connection to a peer that sends everything back, and one from a peer
// that was told the relay's address by the line "allocated".
func streams(client *turn.Client, given options) error {
	peer, err := net.ResolveTCPAddr("tcp4", given.peer)
	if err != nil {
		return err
	}
	allocation, err := client.AllocateTCP()
	if err != nil {
		return fmt.Errorf("allocate: %w", err)
	}
	dialled, err := allocation.DialTCP("tcp", nil, peer)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	if err = returned(dialled, []byte("to the peer and back")); err != nil {
		return err
	}
	tell("dialled")
	tell("allocated", "relay", allocation.Addr().String())
	_ = allocation.SetDeadline(time.Now().Add(patience))
	accepted, err := allocation.AcceptTCP()
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	tell("accepted", "from", accepted.RemoteAddr().String())
	if err = returned(accepted, []byte("to who called and back")); err != nil {
		return err
	}
	tell("echoed")
	_, _ = dialled.Close(), accepted.Close()
	if err = allocation.Close(); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	tell("released")
	return nil
}

// returned writes text and reads it back.
func returned(stream net.Conn, text []byte) error {
	_ = stream.SetDeadline(time.Now().Add(patience))
	if _, err := stream.Write(text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	got := make([]byte, 0, len(text))
	for len(got) < len(text) {
		piece := make([]byte, len(text)-len(got))
		count, err := stream.Read(piece)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		got = append(got, piece[:count]...)
	}
	if !bytes.Equal(got, text) {
		return errors.New("other bytes came back")
	}
	return nil
}

func run(given options) error {
	socket, err := connect(given.transport, given.server)
	if err != nil {
		return err
	}
	defer socket.Close()
	said := &journal{change: make(chan struct{})}
	client, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr: given.server,
		TURNServerAddr: given.server,
		Username:       given.user,
		Password:       given.password,
		Conn:           socket,
		LoggerFactory:  said,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	if err = client.Listen(); err != nil {
		return err
	}
	if given.what == "streams" {
		return streams(client, given)
	}
	return relay(client, said, given)
}

func main() {
	var given options
	flag.StringVar(&given.server, "server", "127.0.0.1:3478", "address of the TURN server")
	flag.StringVar(&given.transport, "transport", "udp", "to the server: udp, tcp or tls")
	flag.StringVar(&given.user, "user", "", "user name")
	flag.StringVar(&given.password, "password", "", "password")
	flag.StringVar(&given.peer, "peer", "", "address of a peer that sends everything back")
	flag.IntVar(&given.messages, "messages", 20, "datagrams to exchange")
	flag.BoolVar(&given.refresh, "refresh", false, "wait until the allocation was refreshed")
	flag.StringVar(&given.what, "what", "relay", "relay (UDP to peers) or streams (TCP, RFC 6062)")
	flag.Parse()
	if err := run(given); err != nil {
		tell("failed", "reason", err.Error())
		os.Exit(1)
	}
}
