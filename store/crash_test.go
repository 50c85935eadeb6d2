package store_test

const crashEnv = "HEARTH_TEST_CRASH_DIR"

func crashChild(string) {}
