module.exports.handler = async () => 'js';
