package operator

import "golang.org/x/sys/unix"

// clockKept asks the kernel whether somebody keeps the clock right; known is false where it does not say.
func clockKept() (kept, known bool) {
	var t unix.Timex // no modes: it only asks
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, false
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, true
}
