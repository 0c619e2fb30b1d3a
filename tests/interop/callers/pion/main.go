// A call with Pion; see the package's __init__.py. Its media are packets with headers that are right and payloads that
// are not: a VP8 keyframe in each.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/sdp/v3"
	"github.com/pion/webrtc/v4"
)

type order struct {
	URI       string `json:"uri"`
	Username  string `json:"username"`
	Password  string `json:"password"`
	Name      string `json:"name"`
	Simulcast bool   `json:"simulcast"`
}

type message struct {
	Type string `json:"type"`
	SDP  string `json:"sdp,omitempty"`
}

type sights struct {
	State  string   `json:"state"`
	Audio  int      `json:"audio"`
	Video  int      `json:"video"`
	Frames int      `json:"frames"`
	Heard  []string `json:"heard"`
}

// The second line that is offered.
const videoMid = "1"

var (
	mutex sync.Mutex
	seen  = sights{State: "new", Heard: []string{}}
	// RFC 7741, 4.2 and RFC 6386, 9.1: the first packet of a frame, and a keyframe of 640 by 360.
	keyframe = []byte{0x10, 0x50, 0x02, 0x00, 0x9d, 0x01, 0x2a, 0x80, 0x02, 0x68, 0x01}
)

func say(what any) {
	mutex.Lock()
	defer mutex.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(what)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// send writes packets of that payload on a track, in that interval. Of several encodings each packet names its own
// (RFC 8852), which Pion leaves to us.
func send(sender *webrtc.RTPSender, track *webrtc.TrackLocalStaticRTP, payload []byte, interval time.Duration, clock uint32) {
	step := uint32(uint64(clock) * uint64(interval) / uint64(time.Second))
	for number := uint16(1); ; number++ {
		header := rtp.Header{Version: 2, Marker: true, SequenceNumber: number, Timestamp: uint32(number) * step}
		if track.RID() != "" {
			for _, extension := range sender.GetParameters().HeaderExtensions {
				switch extension.URI {
				case sdp.SDESMidURI:
					_ = header.SetExtension(uint8(extension.ID), []byte(videoMid))
				case sdp.SDESRTPStreamIDURI:
					_ = header.SetExtension(uint8(extension.ID), []byte(track.RID()))
				}
			}
		}
		_ = track.WriteRTP(&rtp.Packet{Header: header, Payload: payload})
		time.Sleep(interval)
	}
}

func video(rid string) *webrtc.TrackLocalStaticRTP {
	capability := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8}
	more := []func(*webrtc.TrackLocalStaticRTP){}
	if rid != "" {
		more = append(more, webrtc.WithRTPStreamID(rid))
	}
	track, err := webrtc.NewTrackLocalStaticRTP(capability, "video", "pion", more...)
	must(err)
	return track
}

// drain reads the RTCP of a sender, without which Pion's interceptors see none of it.
func drain(sender *webrtc.RTPSender) {
	buffer := make([]byte, 1500)
	for {
		if _, _, err := sender.Read(buffer); err != nil {
			return
		}
	}
}

func publish(connection *webrtc.PeerConnection, given order) {
	audio, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}, "audio", "pion")
	must(err)
	sender, err := connection.AddTrack(audio)
	must(err)
	go drain(sender)
	go send(sender, audio, make([]byte, 60), 20*time.Millisecond, 48000)
	rids := []string{""}
	if given.Simulcast {
		rids = []string{"q", "h", "f"}
	}
	tracks := []*webrtc.TrackLocalStaticRTP{}
	for number, rid := range rids {
		track := video(rid)
		tracks = append(tracks, track)
		if number == 0 {
			sender, err = connection.AddTrack(track)
			must(err)
			go drain(sender)
		} else {
			must(sender.AddEncoding(track))
		}
	}
	for number, track := range tracks {
		go send(sender, track, append(append([]byte{}, keyframe...), make([]byte, 200*(number+1))...), 40*time.Millisecond, 90000)
	}
}

func watch(connection *webrtc.PeerConnection) {
	connection.OnConnectionStateChange(func(state webrtc.PeerConnectionState) {
		mutex.Lock()
		defer mutex.Unlock()
		seen.State = state.String()
	})
	connection.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			if _, _, err := track.ReadRTP(); err != nil {
				return
			}
			mutex.Lock()
			if track.Kind() == webrtc.RTPCodecTypeAudio {
				seen.Audio++
			} else {
				seen.Video++
			}
			mutex.Unlock()
		}
	})
	connection.OnDataChannel(listen)
}

func listen(channel *webrtc.DataChannel) {
	channel.OnMessage(func(heard webrtc.DataChannelMessage) {
		mutex.Lock()
		defer mutex.Unlock()
		for _, text := range seen.Heard {
			if text == string(heard.Data) {
				return
			}
		}
		seen.Heard = append(seen.Heard, string(heard.Data))
	})
}

// describe sets a local description and tells it with all of its candidates.
func describe(connection *webrtc.PeerConnection, description webrtc.SessionDescription) {
	gathered := webrtc.GatheringCompletePromise(connection)
	must(connection.SetLocalDescription(description))
	<-gathered
	say(message{Type: description.Type.String(), SDP: connection.LocalDescription().SDP})
}

func handle(connection *webrtc.PeerConnection, told message) {
	switch told.Type {
	case "answer":
		must(connection.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: told.SDP}))
	case "offer":
		if connection.SignalingState() != webrtc.SignalingStateStable {
			return // both have offered at once, and the SFU yields
		}
		must(connection.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: told.SDP}))
		answer, err := connection.CreateAnswer(nil)
		must(err)
		describe(connection, answer)
	}
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	lines.Scan()
	var given order
	must(json.Unmarshal(lines.Bytes(), &given))
	connection, err := webrtc.NewPeerConnection(webrtc.Configuration{
		ICEServers:         []webrtc.ICEServer{{URLs: []string{given.URI}, Username: given.Username, Credential: given.Password}},
		ICETransportPolicy: webrtc.ICETransportPolicyRelay,
	})
	must(err)
	watch(connection)
	publish(connection, given)
	chat, err := connection.CreateDataChannel("chat", nil)
	must(err)
	listen(chat)
	offer, err := connection.CreateOffer(nil)
	must(err)
	describe(connection, offer)
	go func() {
		for {
			if chat.ReadyState() == webrtc.DataChannelStateOpen {
				_ = chat.SendText("hello from " + given.Name)
			}
			mutex.Lock()
			now := seen
			now.Heard = append([]string{}, seen.Heard...)
			mutex.Unlock()
			say(map[string]any{"seen": now})
			time.Sleep(200 * time.Millisecond)
		}
	}()
	for lines.Scan() {
		var told message
		must(json.Unmarshal(lines.Bytes(), &told))
		handle(connection, told)
	}
}
