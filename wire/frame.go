package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is u32 length || body, big-endian (PROTOCOL 11.1). The length is judged before a byte is allocated for it.

// ErrFrameSize is a frame that claims to be empty or longer than its protocol allows.
var ErrFrameSize = errors.New("frame length out of bounds")

// ReadFrame reads one frame of at most max bytes of body. The caller has set a deadline on r.
func ReadFrame(r io.Reader, max int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || uint64(n) > uint64(max) {
		return nil, fmt.Errorf("%w: %d, at most %d", ErrFrameSize, n, max)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body, nil
}

// WriteFrame writes one frame in a single Write.
func WriteFrame(w io.Writer, body []byte) error {
	_, err := w.Write(AppendFrame(make([]byte, 0, 4+len(body)), body))
	return err
}

// AppendFrame appends the frame of body to dst.
func AppendFrame(dst, body []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	return append(dst, body...)
}
