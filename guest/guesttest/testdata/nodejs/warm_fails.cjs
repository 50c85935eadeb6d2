function inner() {
  const e = new Error('too cold');
  e.name = 'ValueError';
  throw e;
}

exports.warmup = async () => inner();

exports.handler = () => { console.log('never'); };
