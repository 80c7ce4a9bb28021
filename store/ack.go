package store

import "time"

type ackRow struct {
	Ack [16]byte  `cbor:"1,keyasint"`
	At  time.Time `cbor:"2,keyasint"`
}

// PutAck keeps the acknowledgement that an item was given: the key that made it is gone, and an item whose answer was lost
// comes again byte for byte.
func (tx *Tx) PutAck(item, ack [16]byte, at time.Time) error {
	return put(tx, key(tAck, item[:]), ackRow{Ack: ack, At: at})
}

// Ack returns the acknowledgement an item was given before.
func (tx *Tx) Ack(item [16]byte) (ack [16]byte, ok bool, err error) {
	row, err := get[ackRow](tx, key(tAck, item[:]))
	ok, err = found(err)
	return row.Ack, ok, err
}

// ExpireAcks removes acknowledgements from before the moment, at most limit of them (0 is 4 000), and returns how many it
// removed.
func (tx *Tx) ExpireAcks(before time.Time, limit int) (int, error) {
	if limit <= 0 {
		limit = maxDeletes
	}
	var gone [][]byte
	err := tx.iterate(scan{prefix: key(tAck)}, func(k, plain []byte) (bool, error) {
		var row ackRow
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		if row.At.Before(before) {
			gone = append(gone, k)
		}
		return len(gone) < limit, nil
	})
	if err != nil {
		return 0, err
	}
	return len(gone), tx.deleteKeys(gone)
}
