package ledger

// HeldError says that commands are not recorded, because of what somebody who looks
// through the streams has found. Nothing was stored.
type HeldError struct{ Cause error }

func (e *HeldError) Error() string { return "nothing is recorded: " + e.Cause.Error() }

// Unwrap is what was found.
func (e *HeldError) Unwrap() error { return e.Cause }

// Hold has appends to LEDGER, decided acts on OPS and prunings refused with a
// [*HeldError] while what it is given answers an error. Uses are recorded as ever, and
// so are acts that only tell of something ([Ledger.AppendOps]) and FEED, whose facts
// stand in LEDGER already. because is called before every append: it MUST be quick.
func (l *Ledger) Hold(because func() error) { l.because.Store(&because) }

// held is the [*HeldError] that appends meet, or nil.
func (l *Ledger) held() error {
	because := l.because.Load()
	if because == nil {
		return nil
	}
	if err := (*because)(); err != nil {
		return &HeldError{err}
	}
	return nil
}
